"""The engines agree to the last bit, fail loudly, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fl_sim.errors import FederationError
from fl_sim.events import EventKind
from fl_sim.parameters import flatten
from fl_sim.run_store import RunState, create_run
from fl_sim.runtime import run_federation, stop_process_group

CLIENT_APP = "clients.client_app:build_client_app"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_ray_and_one_process_give_the_same_bits(tiny, run_tiny, tmp_path):
    # More clients than workers, so that replies arrive in another order than they are summed.
    changes = [
        "data.num_clients=5",
        "federation.clients_per_round=3",
        "training.momentum=0.5",
        "model={name='convnet'}",
    ]
    on_ray = create_run(tiny(*changes), tmp_path)
    kinds = [event.kind for event in run_federation(on_ray, engine="ray", client_app=CLIENT_APP)]
    in_process = run_tiny(*changes)
    assert kinds[-1] is EventKind.FEDERATION_FINISHED
    for server_round in (1, 2):
        ours, theirs = on_ray.recording.read_round(server_round), in_process.recording.read_round(server_round)
        assert [update.client_id for update in ours.updates] == [update.client_id for update in theirs.updates]
        for mine, other in zip(ours.updates, theirs.updates, strict=True):
            assert torch.equal(flatten(mine.tensors), flatten(other.tensors))
    assert torch.equal(flatten(on_ray.recording.read_final()[0]), flatten(in_process.recording.read_final()[0]))
    assert on_ray.evaluations() == in_process.evaluations()


def test_a_failed_server_is_an_error_with_its_reason_and_log(tiny, tmp_path):
    run = create_run(tiny(), tmp_path)
    (run.folder / "recording").write_text("in the way")  # the recorder cannot make its folder
    with pytest.raises(FederationError, match=r"the federation failed: .*; the whole log is in .*federation\.log"):
        list(run_federation(run, engine="inprocess", client_app=CLIENT_APP))
    assert run.status().state is RunState.FAILED


def test_a_killed_server_is_an_error_too(tiny, tmp_path):
    run = create_run(tiny("federation.num_rounds=2000"), tmp_path)
    events = run_federation(run, engine="inprocess", client_app=CLIENT_APP)
    next(event for event in events if event.kind is EventKind.ROUND_RECORDED)
    _kill_processes_of(run.folder)
    with pytest.raises(FederationError, match="exit code -9"):
        list(events)
    assert run.status().state is RunState.FAILED


def test_leaving_the_loop_early_stops_the_processes(tiny, tmp_path):
    run = create_run(tiny("federation.num_rounds=2000"), tmp_path)
    events = run_federation(run, engine="inprocess", client_app=CLIENT_APP)
    next(events)
    assert _processes_of(run.folder)
    events.close()
    assert not _processes_of(run.folder)
    assert run.status().state is RunState.FAILED
    assert run.status().message == "stopped before its end"


def test_a_whole_group_is_stopped():
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = Path("/proc") / process.stdout.readline().decode().strip() / "stat"
    stop_process_group(process)
    assert not grandchild.exists() or grandchild.read_text().split()[2] == "Z"  # gone, or waiting to be reaped
    process.stdout.close()


def _processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "fl_sim.engines.process" in arguments and str(folder) in arguments:
            found.append(int(entry.name))
    return found


def _kill_processes_of(folder: Path) -> None:
    for pid in _processes_of(folder):
        os.kill(pid, signal.SIGKILL)
