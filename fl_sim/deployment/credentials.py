"""Makes the certificates and keys of a deployment: ``python -m fl_sim.deployment.credentials FOLDER …``.

    ca.crt                        everybody: by it a SuperLink is known
    superlink/server.crt, .key    the SuperLink only
    client-0/key                  SuperNode 0 only: by it the SuperNode is known
    public/client-0.pub           whoever admits SuperNodes

The authority's own key is not written: nobody can sign another certificate. To renew them, make a new folder.
"""

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_sim.errors import ConfigError, FlSimError

_CURVE = ec.SECP384R1()


def make_credentials(folder: Path, *, hosts: Sequence[str], num_clients: int, days: int = 365) -> None:
    """Make an authority, a certificate for the SuperLink, and a pair of keys for each SuperNode.

    Args:
        folder: Made by this function.
        hosts: Names and addresses under which the SuperLink is reached, from everywhere.
        num_clients: Number of SuperNodes.
        days: For how long the certificates are valid.

    Raises:
        ConfigError: If the folder is there already: keys are never overwritten.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already; name a new folder, or remove it and its keys") from error
    authority_key, server_key = ec.generate_private_key(_CURVE), ec.generate_private_key(_CURVE)
    authority = _certificate("fl-sim authority", authority_key, issuer=None, issuer_key=authority_key, days=days)
    server = _certificate(hosts[0], server_key, issuer=authority, issuer_key=authority_key, days=days, hosts=hosts)
    _write(folder / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    _write(folder / "superlink" / "server.crt", server.public_bytes(serialization.Encoding.PEM))
    _write(
        folder / "superlink" / "server.key", _private_bytes(server_key, serialization.PrivateFormat.PKCS8), secret=True
    )
    for client_id in range(num_clients):
        key = ec.generate_private_key(_CURVE)
        private = _private_bytes(key, serialization.PrivateFormat.OpenSSH)
        _write(folder / f"client-{client_id}" / "key", private, secret=True)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write(folder / "public" / f"client-{client_id}.pub", public + b"\n")


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Return a certificate, or an authority's own where there is no issuer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    is_authority = issuer is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_key_usage(is_authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    mode = 0o600 if secret else 0o644
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)


def main(arguments: list[str]) -> None:
    """Read the command line and make the credentials; the exit code is 2 for a wrong argument.

    Args:
        arguments: The folder, the names of the SuperLink, the number of clients, the days.
    """
    parser = argparse.ArgumentParser(description="Make certificates and keys for a SuperLink and its SuperNodes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--hosts", default="superlink,localhost,127.0.0.1", help="Names and addresses of the SuperLink."
    )
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--days", type=int, default=365)
    chosen = parser.parse_args(arguments)
    try:
        make_credentials(chosen.folder, hosts=chosen.hosts.split(","), num_clients=chosen.clients, days=chosen.days)
    except FlSimError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
