"""Where a SuperLink listens, and how its certificate is checked."""

from dataclasses import dataclass
from pathlib import Path

from fl_sim.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLinkAddress:
    """A SuperLink that can be reached.

    Attributes:
        host: Name or address.
        port: Its one port, in [1, 65535].
        root_certificates: File of the certificate authority; ``None`` speaks without TLS.
    """

    host: str
    port: int
    root_certificates: Path | None = None

    def __str__(self) -> str:
        """Return ``HOST:PORT``, as Flower's commands take it."""
        return f"{self.host}:{self.port}"


def parse_superlink_address(text: str, root_certificates: Path | None = None) -> SuperLinkAddress:
    """Read ``HOST:PORT``.

    Args:
        text: What a person typed.
        root_certificates: File of the certificate authority, for a SuperLink with TLS.

    Raises:
        ConfigError: If it is no address, or the file is not there.
    """
    host, separator, port = text.rpartition(":")
    is_number = port.isascii() and port.isdigit()
    if not separator or not host or "/" in host or not is_number or not 0 < int(port) < 65536:
        raise ConfigError(f"--superlink: expected HOST:PORT such as 127.0.0.1:8000, got {text!r}")
    if root_certificates is not None and not root_certificates.is_file():
        raise ConfigError(f"--root-certificates: {str(root_certificates)!r} is not a file; see docs/deployment.md")
    return SuperLinkAddress(
        host=host, port=int(port), root_certificates=root_certificates and root_certificates.resolve()
    )
