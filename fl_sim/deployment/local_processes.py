"""A SuperLink and its SuperNodes as processes of this machine, on free ports of the loopback interface."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fl_sim.deployment.address import SuperLinkAddress
from fl_sim.errors import FederationError
from fl_sim.process_tree import descendants, end_processes

_LOOPBACK = "127.0.0.1"
_ONLINE = "SuperNode ID:"  # what a SuperNode prints when the SuperLink has let it in
_SECONDS_TO_END = 8.0  # less than what `fl_sim.runtime` grants to the process that calls
_LINES_OF_LOG = 5
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalProcess:
    """A process that was started.

    Attributes:
        name: For messages.
        process: The process.
        log: What it and its helpers print.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def describe(self) -> str:
        """Return name, state and the end of the log."""
        code = self.process.poll()
        lines = [line.strip() for line in _COLOUR.sub("", _read_log(self.log)).splitlines() if line.strip()]
        tail = " | ".join(lines[-_LINES_OF_LOG:]) or "nothing"
        return f"{self.name} ({'still running' if code is None else f'ended with {code}'}), last printed: {tail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFederation:
    """One SuperLink and its SuperNodes.

    Attributes:
        address: Where the SuperLink listens.
        superlink: Its process.
        supernodes: The processes of the SuperNodes, by client id.
    """

    address: SuperLinkAddress
    superlink: LocalProcess
    supernodes: tuple[LocalProcess, ...]

    def raise_if_ended(self, *, supernodes: bool) -> None:
        """Raise if the SuperLink, or one of the SuperNodes where asked, has ended.

        Raises:
            FederationError: With the names of those that have, and what they printed last.
        """
        processes = (self.superlink, *self.supernodes) if supernodes else (self.superlink,)
        ended = [one.describe() for one in processes if one.process.poll() is not None]
        if ended:
            raise FederationError("; ".join(ended))

    def describe_missing(self) -> str:
        """Return the SuperNodes that the SuperLink has not let in yet, with what they printed last."""
        return "; ".join(node.describe() for node in self.supernodes if _ONLINE not in _read_log(node.log))


@contextlib.contextmanager
def local_federation(num_clients: int, *, home: Path, logs: Path) -> Generator[LocalFederation]:
    """Start a SuperLink and SuperNodes; when the context ends, they and all their helpers have ended.

    Args:
        num_clients: Number of SuperNodes.
        home: Folder for Flower's files; each process gets one of its own in it.
        logs: Folder for a log of each process.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port, *runtime_ports = _free_ports(num_clients + 1)
    address = SuperLinkAddress(host=_LOOPBACK, port=port)
    started: list[LocalProcess] = []

    def start(name: str, program: str, *arguments: str) -> LocalProcess:
        command = [str(_programs() / program), *arguments]
        one = _start(name, command, home=home / name, log=logs / f"{name}.log")
        started.append(one)
        return one

    try:
        listening = ("--host", _LOOPBACK, "--port", str(port), "--disable-runtime-dependency-installation")
        superlink = start("superlink", "flower-superlink", "--insecure", *listening)
        supernodes: list[LocalProcess] = []
        for client_id, runtime_port in enumerate(runtime_ports):
            joining = ("--superlink", str(address), "--host", _LOOPBACK, "--port", str(runtime_port))
            who = ("--node-config", f"partition-id={client_id} num-partitions={num_clients}")
            supernodes.append(start(f"supernode-{client_id}", "flower-supernode", "--insecure", *joining, *who))
        yield LocalFederation(address=address, superlink=superlink, supernodes=tuple(supernodes))
    finally:
        _end(started)


def environment_of_processes(home: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a Flower process: its own home, our programs, and this process's module path.

    Args:
        home: Its ``FLWR_HOME``.
        environment: What it inherits.
    """
    return {
        **environment,
        "FLWR_HOME": str(home),
        "PATH": os.pathsep.join(filter(None, (str(_programs()), environment.get("PATH")))),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }


def _programs() -> Path:
    return Path(sys.executable).parent


def _start(name: str, command: Sequence[str], *, home: Path, log: Path) -> LocalProcess:
    home.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment_of_processes(home, os.environ),
        )
    return LocalProcess(name=name, process=process, log=log)


def _end(started: Sequence[LocalProcess]) -> None:
    helpers = frozenset[psutil.Process]().union(*(descendants(one.process.pid) for one in started))
    for one in started:
        one.process.terminate()
    for one in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(_SECONDS_TO_END)
    end_processes(helpers, seconds=_SECONDS_TO_END)
    for one in started:
        one.process.kill()
        one.process.wait()


def _free_ports(count: int) -> list[int]:
    # All are held at once, so that no two are the same.
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _read_log(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
