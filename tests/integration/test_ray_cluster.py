"""A Ray cluster of two nodes on this machine: a simulation and a campaign use both, and one may be lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
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


@dataclass(frozen=True)
class Cluster:
    """Two `ray start` commands."""

    address: str
    worker: subprocess.Popen[bytes]


@pytest.fixture
def cluster(monkeypatch, tmp_path) -> Iterator[Cluster]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)  # set by `fl_sim.cli`, once imported
    port = _free_port()
    # Addresses of the loopback interface; 127.0.0.1 would not do, which Ray replaces by that of an outer interface.
    head_ip, worker_ip = "127.0.0.2", "127.0.0.3"
    address = f"{head_ip}:{port}"
    folder = Path("/tmp") / f"fl-sim-ray-{os.getpid()}"  # a socket's path may have 107 bytes
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    with ExitStack() as running:
        _start_node(head_ip, head, tmp_path / "head", running)
        yield Cluster(address, _start_node(worker_ip, [f"--address={address}"], tmp_path / "worker", running))


def _start_node(own_ip: str, own: list[str], log: Path, running: ExitStack) -> subprocess.Popen[bytes]:
    """Start a node, again if need be: Ray gives one up that is not there after 30 s, and no setting allows it more."""
    command = [str(Path(sys.executable).parent / "ray"), "start", *own]
    command += [f"--node-ip-address={own_ip}", "--num-cpus=1", "--object-store-memory=200000000"]
    command += ["--disable-usage-stats", "--block"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        running.callback(_stop_node, process)
        while process.poll() is None and time.monotonic() < deadline:
            if b"Ray runtime started" in log.read_bytes():
                assert f"Local node IP: {own_ip}" in log.read_text()
                return process
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def _stop_node(process: subprocess.Popen[bytes]) -> None:
    stemming = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    end_processes(stemming, seconds=0)
    process.wait(10)


def test_two_nodes_run_a_simulation_and_a_campaign_and_one_may_be_lost(
    cluster, run_tiny, tiny_settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
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
            if len({note.read_text() for note in notes.iterdir()}) == 2 and cluster.worker.poll() is None:
                _stop_node(cluster.worker)

    watch = LosesANode()
    assert run_campaign(plan_campaign(run, config), workers="ray", observer=watch) == ()
    assert cluster.worker.poll() is not None
    assert len(watch.finished) == len(set(watch.finished)) == 6
    assert plan_campaign(run, config).tasks == ()
    assert len({note.read_text() for note in notes.iterdir()}) == 2


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
