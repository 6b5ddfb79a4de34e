"""Talks to a SuperLink: who is online, start a run, how does it stand, stop it, admit a SuperNode's key.

Private pieces of Flower stand here, and nowhere else: the HTTP client behind ``flwr run``, ``flwr list``, ``flwr stop``
and ``flwr supernode``. The commands import for seconds at every call, and ``flwr run`` says 0 for a run that failed.
"""

import contextlib
import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fl_sim.deployment.address import SuperLinkAddress
from fl_sim.errors import ConfigError, FederationError

_FINISHED, _COMPLETED = "finished", "completed"


class SuperLinkError(FederationError):
    """The SuperLink did not answer, or refused; it may do better later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """How a run stands at the SuperLink.

    Attributes:
        is_finished: Whether it has ended, well or not.
        is_completed: Whether it has ended well.
        description: The same in words, with Flower's details.
    """

    is_finished: bool
    is_completed: bool
    description: str


class SuperLinkControl:
    """The Control API of one SuperLink; a context manager that closes the connections."""

    def __init__(self, superlink: SuperLinkAddress) -> None:
        """Prepare to talk to a SuperLink; nothing is sent."""
        self._superlink = superlink
        certificates = superlink.root_certificates
        connection = SuperLinkConnection(
            name="fl-sim",
            address=str(superlink),
            root_certificates=None if certificates is None else str(certificates),
            insecure=certificates is None,
        )
        with _as_superlink_errors(superlink), contextlib.redirect_stdout(None):
            self._client = init_http_client_from_connection(connection)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *reason: object) -> None:
        """Close the connections."""
        self._client.close()

    def num_online(self) -> int:
        """Return how many SuperNodes are online.

        Raises:
            SuperLinkError: If the SuperLink cannot be reached or refuses.
        """
        with _as_superlink_errors(self._superlink):
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return sum(node.status == "online" for node in nodes)

    def start_run(self, app: Path) -> int:
        """Send the bundle of an app folder, start a run, and return its id.

        Raises:
            SuperLinkError: If the SuperLink cannot be reached or refuses.
        """
        content = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        with _as_superlink_errors(self._superlink):
            response = self._client.StartRun(StartRunRequest(fab=fab))
        if not response.HasField("run_id"):
            raise SuperLinkError(f"SuperLink {self._superlink} did not start the run; its log says why")
        return response.run_id

    def run_state(self, run_id: int) -> FlowerRun:
        """Return how a run stands.

        Raises:
            SuperLinkError: If the SuperLink cannot be reached or does not know the run.
        """
        with _as_superlink_errors(self._superlink):
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            raise SuperLinkError(f"SuperLink {self._superlink} does not know run {run_id}; was it started anew?")
        status = runs[run_id].status
        words = ":".join(filter(None, (status.status, status.sub_status)))
        return FlowerRun(
            is_finished=status.status == _FINISHED,
            is_completed=status.status == _FINISHED and status.sub_status == _COMPLETED,
            description=f"{words} ({status.details})" if status.details else words,
        )

    def stop_run(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            SuperLinkError: If the SuperLink cannot be reached or refuses.
        """
        with _as_superlink_errors(self._superlink):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def register(self, public_key: Path) -> int:
        """Admit the SuperNode that holds the private half of a key, and return the id of the node.

        Nothing changes for a key that the SuperLink knows already.

        Args:
            public_key: File in OpenSSH's format, ECDSA on a NIST curve.

        Raises:
            ConfigError: If the file is no such key.
            SuperLinkError: If the SuperLink cannot be reached or refuses.
        """
        try:
            key = load_ssh_public_key(public_key.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{public_key}: expected a public key in OpenSSH's format, got: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(f"{public_key}: expected an ECDSA key, as fl_sim.deployment.credentials makes them")
        content = public_key_to_bytes(key)
        with _as_superlink_errors(self._superlink):
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info:
                if node.public_key == content and not node.unregistered_at:
                    return node.node_id
            return self._client.RegisterNode(RegisterNodeRequest(public_key=content)).node_id


@contextlib.contextmanager
def _as_superlink_errors(superlink: SuperLinkAddress) -> Generator[None]:
    try:
        with flwr_cli_exc_handler():
            yield
    except click.ClickException as error:
        raise SuperLinkError(f"SuperLink {superlink}: {error.message}") from error
