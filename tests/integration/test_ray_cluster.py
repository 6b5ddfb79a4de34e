"""A Ray cluster of two nodes on this machine: a simulation and a campaign use both, and one may be lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.attack_store import ResultKey
from attacker.campaign import plan_campaign, run_campaign
from attacker.campaign_observer import CampaignObserver
from attacker.observation import Observation
from attacker.recipes.inverting_gradients import InvertingGradients
from fl_sim.config import AttackConfig
from fl_sim.process_tree import descendants, end_processes
from fl_sim.run_store import RunState, list_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True, kw_only=True)
class SaysWhere:
    """An attack that leaves a note of the node on which it runs, and takes its time."""

    folder: str
    seconds: float = 2.0

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        note = Path(self.folder) / f"{generator.initial_seed()}-{time.time_ns()}"
        note.write_text(ray.get_runtime_context().get_node_id())
        time.sleep(self.seconds)
        return InvertingGradients(steps=2)(observation, generator=generator, on_step=on_step)


class Nodes:
    """The two `ray start` commands."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats", "--block"]
        port = self.address.rpartition(":")[2]
        self.head = self._start(
            ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"], common
        )
        self._await(1)
        self.worker = self._start([f"--address={self.address}"], common)
        self._await(2)

    def number(self) -> int:
        """Ask another process: this one must stay free to join later."""
        script = (
            "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        found = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=False,
        )
        return int(found.stdout.strip() or 0) if found.returncode == 0 else 0

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        stemming = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        end_processes(stemming, seconds=0)
        process.wait(10)

    def _start(self, own: list[str], common: list[str]) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", *own, *common]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    def _await(self, number: int) -> None:
        deadline = time.monotonic() + 180
        while self.number() < number:
            assert time.monotonic() < deadline, f"{number} nodes did not come up"
            time.sleep(0.5)


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Nodes]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = Nodes(Path("/tmp") / f"fl-sim-ray-{os.getpid()}")  # a socket's path may have 107 bytes
    try:
        yield started
    finally:
        started.stop(started.worker)
        started.stop(started.head)


def test_two_nodes_run_a_simulation_and_a_campaign_and_one_may_be_lost(
    nodes, run_tiny, tiny_settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    changes = [part for text in (*tiny_settings, "federation.num_rounds=2") for part in ("--set", text)]
    command = [str(Path(sys.executable).parent / "fl-sim"), "run", "--engine", "ray", "--no-attack", "-q", *changes]
    finished = subprocess.run(
        [*command, "--runs-dir", str(tmp_path / "runs")], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    (simulated,) = list_runs(tmp_path / "runs")
    assert simulated.status().state is RunState.FINISHED

    run = run_tiny("federation.num_rounds=1")
    notes = tmp_path / "notes"
    notes.mkdir()
    config = AttackConfig(name="test_ray_cluster:SaysWhere", options={"folder": str(notes)}, seeds=(0, 1))

    class LosesANode(CampaignObserver):
        def __init__(self) -> None:
            self.finished: list[ResultKey] = []

        def on_finished(self, key: ResultKey) -> None:
            self.finished.append(key)
            if len({note.read_text() for note in notes.iterdir()}) == 2 and nodes.worker.poll() is None:
                nodes.stop(nodes.worker)

    watch = LosesANode()
    assert run_campaign(plan_campaign(run, config), workers="ray", observer=watch) == ()
    assert nodes.worker.poll() is not None
    assert len(watch.finished) == len(set(watch.finished)) == 6
    assert plan_campaign(run, config).tasks == ()
    assert len({note.read_text() for note in notes.iterdir()}) == 2


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
