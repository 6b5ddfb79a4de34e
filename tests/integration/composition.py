"""Reads the compose files and runs their very commands as processes of this machine.

What differs from containers, and nothing else: names of machines become the loopback address, ports free ones, paths in
containers the folders that are mounted there, and each SuperNode gets a port of its own.
"""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fl_sim.deployment.address import SuperLinkAddress

ROOT = Path(__file__).parents[2]
BASE, TLS = ROOT / "docker-compose.yml", ROOT / "docker-compose.tls.yml"


def read_services(*files: Path, variables: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the services of the files, later ones laid over earlier ones; variables not given have their defaults."""
    services: dict[str, dict[str, Any]] = {}
    for file in files:
        text = re.sub(
            r"\$\{(\w+):-([^}]*)\}", lambda match: (variables or {}).get(match[1], match[2]), file.read_text()
        )
        for name, service in yaml.safe_load(text)["services"].items():
            known = services.setdefault(name, {})
            volumes = known.get("volumes", []) + service.get("volumes", [])
            depends_on = known.get("depends_on", {}) | service.get("depends_on", {})
            known |= service | {"volumes": volumes, "depends_on": depends_on}
    return services


@dataclass
class Composition:
    """Services as local processes.

    Attributes:
        services: As read from the compose files.
        folder: Named volumes, homes and logs live in it.
        processes: What was started, by label.
        ports: The port of each SuperNode, which is 9094 in a container.
    """

    services: dict[str, dict[str, Any]]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with socket.socket() as superlink:
            superlink.bind(("127.0.0.1", 0))
            self.address = SuperLinkAddress(host="127.0.0.1", port=superlink.getsockname()[1])

    def start(
        self, name: str, *, command: list[str] | None = None, label: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a service, or another command in its place, and keep the process under its name or a label."""
        label = label or name
        home = self.folder / "homes" / label
        home.mkdir(parents=True, exist_ok=True)
        with self.log(label).open("wb") as log:
            process = subprocess.Popen(
                self.command(name, command),
                cwd=home,
                env={
                    **os.environ,
                    "FLWR_HOME": str(home),
                    "FLWR_TELEMETRY_ENABLED": "0",
                    "FLWR_DISABLE_UPDATE_CHECK": "1",
                    "OMP_NUM_THREADS": "1",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "PYTHONUNBUFFERED": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[label] = process
        return process

    def is_healthy(self, name: str) -> bool:
        """Run the health check of a service."""
        check = self.services[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        return subprocess.run(self._local(name, check[1:]), cwd=ROOT, check=False).returncode == 0

    def command(self, name: str, command: list[str] | None = None) -> list[str]:
        """Return what a service runs, or another command in its place, in the terms of this machine."""
        arguments = self._local(name, self.services[name]["command"] if command is None else command)
        if arguments[0].endswith("flower-supernode"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports[name] = str(free.getsockname()[1])
            arguments += ["--port", self.ports[name]]
        return arguments

    def log(self, label: str) -> Path:
        return self.folder / f"{label}.log"

    def logs(self) -> str:
        return "\n".join(f"{label}:\n{self.log(label).read_text(errors='replace')}" for label in self.processes)

    def mounts(self, name: str) -> dict[str, Path]:
        """Return what is mounted into a service, by path in the container."""
        found = {}
        for volume in self.services[name]["volumes"]:
            source, target = volume.removesuffix(":ro").rsplit(":", 1)
            is_path = source.startswith((".", "/"))
            found[target] = (ROOT / source if is_path else self.folder / "volumes" / source).resolve()
        return found

    def _local(self, name: str, arguments: list[str]) -> list[str]:
        mounts = sorted(self.mounts(name).items(), reverse=True)
        translated = [self._translate(argument, mounts) for argument in arguments]
        return [argument.replace(":9094/", f":{self.ports.get(name)}/") for argument in translated]

    def _translate(self, argument: str, mounts: list[tuple[str, Path]]) -> str:
        if argument.startswith("flower-") or argument in ("fl-sim", "python"):
            return str(Path(sys.executable).parent / argument)
        if argument == "8000":
            return str(self.address.port)
        argument = argument.replace("superlink:8000", str(self.address)).replace("0.0.0.0", "127.0.0.1")
        argument = argument.replace("127.0.0.1:8000", str(self.address))
        for target, source in mounts:
            argument = re.sub(rf"(?<![\w/.]){re.escape(target)}(?![\w.])", str(source), argument)
        return argument
