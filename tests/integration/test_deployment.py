"""Real processes: `fl-sim run --engine deployment` gives the same bits, says the truth, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fl_sim.deployment.local_processes import local_federation
from fl_sim.errors import FederationError
from fl_sim.parameters import flatten
from fl_sim.process_tree import descendants
from fl_sim.run_store import RunState, list_runs

FL_SIM = str(Path(sys.executable).parent / "fl-sim")
CHANGES = ("data.num_clients=2", "federation.num_rounds=1")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deployment")]


@pytest.fixture
def start(tmp_path, tiny):
    """A function that starts `fl-sim run --engine deployment` with a temporary folder of its own, watched for leaks."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started = []

    def start_run(*arguments: str) -> subprocess.Popen[str]:
        command = [FL_SIM, "run", "--engine", "deployment", "--quiet", *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_run
    for process in started:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 10  # multiprocessing's own helpers notice a moment later that they are alone
    while _processes_that_name(temporary) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes_that_name(temporary) == []
    assert [path.name for path in temporary.iterdir() if path.name.startswith("fl-sim")] == []


def settings(*changes: str) -> list[str]:
    return [argument for change in changes for argument in ("--set", change)]


def test_a_deployment_gives_the_bits_of_one_process(start, run_tiny, tiny_settings, tmp_path):
    process = start("--no-attack", "--publish", "page", *settings(*tiny_settings, *CHANGES))
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors + _logs(tmp_path)
    (run,) = list_runs(tmp_path / "runs")
    assert output.strip() == f"runs/{run.folder.name}"
    assert run.status().state is RunState.FINISHED
    alike = run_tiny(*CHANGES)
    ours, theirs = run.recording.read_round(1), alike.recording.read_round(1)
    assert [update.client_id for update in ours.updates] == [0, 1]
    for mine, other in zip(ours.updates, theirs.updates, strict=True):
        assert torch.equal(flatten(mine.tensors), flatten(other.tensors))
    assert torch.equal(flatten(run.recording.read_final()[0]), flatten(alike.recording.read_final()[0]))
    assert (tmp_path / "page" / "index.html").read_bytes() == run.report_path.read_bytes()


def test_a_failed_server_is_exit_1_with_its_reason(start, tiny_settings, tmp_path):
    (tmp_path / "my_lab.py").write_text(
        "import sys\n"
        "from fl_sim.models import MODELS\n"
        "def broken(*, dataset, generator):\n"
        "    if 'serverapp' in sys.argv[0]:\n"
        "        raise RuntimeError('out of magic')\n"
        "    return MODELS['mlp'](dataset=dataset, generator=generator)\n"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    try:
        process = start(*settings(*tiny_settings, *CHANGES, "model={name='my_lab:broken'}"))
    finally:
        os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].split(os.pathsep, 1)[1]
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 1, errors + _logs(tmp_path)
    assert "the federation failed: RuntimeError: out of magic" in errors
    (run,) = list_runs(tmp_path / "runs")
    assert run.status().state is RunState.FAILED


@pytest.mark.parametrize(
    ("stop_signal", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_an_interrupted_deployment_leaves_nothing_behind(start, tiny_settings, tmp_path, stop_signal, exit_code):
    process = start(*settings(*tiny_settings, *CHANGES))
    # Ctrl-C while clients are asked, SIGTERM while SuperNodes come up: both after processes in sessions of their own.
    awaited = "Receiving: query message" if stop_signal is signal.SIGINT else "Starting Flower SuperExec"
    _await_in_logs(tmp_path, awaited, process)
    stemming = descendants(process.pid)
    assert len(stemming) > 4  # engine, SuperLink, two SuperNodes, helpers
    process.send_signal(stop_signal)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code, errors
    (run,) = list_runs(tmp_path / "runs")
    assert run.status().message == "stopped before its end"


def test_a_supernode_that_does_not_come_up_is_named_with_its_log(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    coloured = r"printf '\033[91mno such luck\033[0m\n'; exit 3"
    for name, script in {"flower-superlink": "exec sleep 60", "flower-supernode": coloured}.items():
        (programs / name).write_text(f"#!/bin/sh\nexec 2>&1\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr("fl_sim.deployment.local_processes._programs", lambda: programs)
    with local_federation(2, home=tmp_path / "home", logs=tmp_path / "logs") as local:
        for node in local.supernodes:
            node.process.wait(10)
        with pytest.raises(FederationError) as caught:
            local.raise_if_ended(supernodes=True)
        assert str(caught.value).count("ended with 3), last printed: no such luck") == 2
        assert local.describe_missing().startswith("supernode-0 (ended with 3), last printed: no such luck; supernode-")
        local.raise_if_ended(supernodes=False)  # the SuperLink is up
    assert local.superlink.process.poll() is not None


def _await_in_logs(folder: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while text not in _logs(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, _logs(folder)
        time.sleep(0.1)


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("runs/*/logs/*.log")))


def _processes_that_name(folder: Path) -> list[str]:
    """Return the command lines of the processes whose environment names a folder, helpers of helpers included."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}\0".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found
