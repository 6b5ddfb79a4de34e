"""`fl-sim run --resume`: a killed server goes on to the very bits of a run that nobody disturbed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clients.client_app import build_client_app
from fl_sim.cli import app
from fl_sim.engines import run_in_process
from fl_sim.errors import ConfigError, RecordingError
from fl_sim.events import EventKind, read_events
from fl_sim.parameters import flatten
from fl_sim.resumption import prepare_resumption
from fl_sim.run_lock import is_locked, locked
from fl_sim.run_store import RunState, RunStatus, RunStore, create_run, list_runs
from fl_sim.server_app import build_server_app

FL_SIM = str(Path(sys.executable).parent / "fl-sim")
ROUNDS = "federation.num_rounds=4"
SECURE = "federation.secure_aggregation={}"


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written after it."""


@pytest.fixture
def killed_run(tiny, tmp_path, monkeypatch):
    """A function that runs a federation until a file is about to be put into place, as if the server were killed."""

    def run(at: str, *changes: str) -> RunStore:
        store = create_run(tiny(*changes), tmp_path)
        replace = Path.replace

        def replace_or_die(self: Path, target: Path) -> Path:
            if re.search(at, str(target)):
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace_or_die)
            patched.setattr(RunStore, "write_status", lambda self, status: None)
            with pytest.raises(Killed):
                run_in_process(build_server_app(store), build_client_app(store.experiment()), 3)
        assert store.status().state is RunState.RUNNING
        return store

    return run


def resumed(run: RunStore, run_tiny) -> RunStore:
    prepare_resumption(run, engine="inprocess")
    return run_tiny(store=run)


def contents(run: RunStore) -> dict[str, str]:
    """Return the checksum of every file that the server has recorded."""
    paths = [path for path in run.recording.folder.rglob("*") if path.is_file()] + [run.folder / "evaluations.json"]
    return {str(path.relative_to(run.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(run_tiny) -> RunStore:
    return run_tiny(ROUNDS)


@pytest.mark.parametrize(
    ("at", "num_done", "dropped"),
    [
        ("rounds/0001/client-00001", 0, "round 1 "),
        ("rounds/0003/global", 2, "round 3 "),
        ("rounds/0003/client-00002", 2, "round 3 "),
        (r"rounds/0003/round\.json", 2, "round 3 "),
        ("checkpoint/0003", 2, "round 3 "),
        (r"checkpoint/checkpoint\.json", 0, "round 1 "),
        ("final", 4, ""),
    ],
)
def test_wherever_it_was_killed_its_files_are_those_of_an_undisturbed_run(
    killed_run, run_tiny, undisturbed, at, num_done, dropped
):
    run = resumed(killed_run(at, ROUNDS), run_tiny)
    assert run.status().state is RunState.FINISHED
    assert contents(run) == contents(undisturbed)
    assert not run.checkpoint.folder.exists()
    events = read_events(run.events_path)
    notes = [event.message for event in events if event.kind is EventKind.FEDERATION_RESUMED]
    if num_done or dropped:
        assert notes[0].startswith(f"goes on after round {num_done}")
        assert ("had not ended: dropped, and trained again" in notes[0]) == bool(dropped)
        assert dropped in notes[0]
    started = [event.server_round for event in events if event.kind is EventKind.ROUND_STARTED]
    assert started[-(4 - num_done) :] == list(range(num_done + 1, 5)) or num_done == 4


@pytest.mark.parametrize(
    "changes",
    [
        ["federation.algorithm=fedsgd", "training={learning_rate=0.5}"],
        ["federation.clients_per_round=2", "training.momentum=0.5"],
        ["defenses=[{name='gaussian_noise', options={stddev=0.1}}]"],
        ["federation.central_privacy={clip_norm=0.1, noise_multiplier=1.0}"],
        ["recording.rounds=[1]", "recording.clients=[0]"],
        ["model={name='resnet18', options={stem='cifar'}}", "data.options={size=8}"],
    ],
    ids=["fedsgd", "sampling-momentum", "noise", "central-privacy", "little-kept", "batch-norm"],
)
def test_whatever_a_federation_remembers_it_remembers_after_the_kill(killed_run, run_tiny, changes):
    changes = ["federation.num_rounds=3", *changes]
    run = resumed(killed_run(r"rounds/0003/round\.json", *changes), run_tiny)
    alike = run_tiny(*changes)
    assert contents(run) == contents(alike)
    if "central_privacy" in changes[-1]:
        assert run.recording.read_guarantee()["num_releases"] == 3


def test_under_secure_aggregation_the_mean_and_the_model_are_the_same_though_keys_are_new(killed_run, run_tiny):
    run, alike = resumed(killed_run("rounds/0002/aggregate", SECURE), run_tiny), run_tiny(SECURE)
    for mine, other in zip(run.recording.read_final(), alike.recording.read_final(), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in other)
    for server_round in (1, 2):
        mine, other = run.recording.read_round(server_round), alike.recording.read_round(server_round)
        assert torch.equal(flatten(mine.aggregate.tensors), flatten(other.aggregate.tensors))


def test_a_run_that_was_stopped_or_failed_goes_on_as_well(tiny, run_tiny, undisturbed, tmp_path):
    def fail_in_round_3(record):
        if record.server_round == 3:
            raise RuntimeError("no more")

    run = run_tiny(ROUNDS, on_round=fail_in_round_3, fails="no more")
    assert run.status().state is RunState.FAILED
    assert run.recording.rounds() == (1, 2, 3)
    assert contents(resumed(run, run_tiny)) == contents(undisturbed)


def test_leftovers_of_a_kill_are_cleared_away(killed_run, run_tiny, undisturbed):
    run = killed_run(r"rounds/0002/round\.json", ROUNDS)
    for folder in (run.folder, run.recording.folder, run.recording.folder / "rounds" / "0001"):
        (folder / ".final.safetensors.a8_x0kqz").write_bytes(b"half a file")
    with run.events_path.open("a") as stream:
        stream.write('{"kind": "round_rec')
    resumed(run, run_tiny)
    assert contents(run) == contents(undisturbed)
    assert not list(run.folder.rglob(".*"))
    assert read_events(run.events_path)[-1].kind is EventKind.FEDERATION_FINISHED


def _finished(run: RunStore) -> None:
    run.write_status(RunStatus(state=RunState.FINISHED))


def _changed_experiment(run: RunStore) -> None:
    path = run.folder / "experiment.toml"
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 3"))


def _deployed(run: RunStore) -> None:
    run.write_engine("deployment", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_finished, "its federation has finished, there is nothing to resume"),
        (_changed_experiment, r"experiment\.toml: the experiment was changed since the run began"),
        (_deployed, "the run began with 'deployment', whose clients may hold other data, got 'inprocess'"),
    ],
)
def test_what_cannot_go_on_is_refused_and_left_as_it_is(killed_run, change, message):
    run = killed_run(r"rounds/0002/round\.json")
    change(run)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        prepare_resumption(run, engine="inprocess")
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_run_that_still_runs_is_refused(killed_run):
    run = killed_run(r"rounds/0002/round\.json")
    with locked(run.folder), pytest.raises(ConfigError, match="its federation is still running"):
        prepare_resumption(run, engine="inprocess")
    prepare_resumption(run, engine="inprocess")


def test_data_that_are_no_longer_the_same_are_noticed(killed_run, run_tiny):
    run = killed_run(r"rounds/0002/round\.json")
    path = run.recording.folder / "manifest.json"
    path.write_text(path.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    prepare_resumption(run, engine="inprocess")
    run_tiny(store=run, fails=r"manifest\.json: the data, the model or a package is no longer what it was")
    assert run.recording.rounds() == (1,)


def test_a_damaged_checkpoint_is_refused_and_the_rounds_stay(killed_run, run_tiny):
    run = killed_run(r"rounds/0002/round\.json")
    path = run.checkpoint.folder / "0001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    prepare_resumption(run, engine="inprocess")
    run_tiny(store=run, fails=r"0001\.safetensors: the content was changed")
    assert run.recording.rounds() == (1,)
    with pytest.raises(RecordingError, match="the content was changed"):
        run.checkpoint.read({})


def test_other_packages_are_told(killed_run):
    run = killed_run(r"rounds/0002/round\.json")
    origin = json.loads((run.folder / "run.json").read_text())
    origin["packages"]["torch"] = "1.0"
    (run.folder / "run.json").write_text(json.dumps(origin))
    (notice,) = prepare_resumption(run, engine="inprocess")
    assert "torch was 1.0 and is" in notice


# By the command, and with real signals.


def fl_sim(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [FL_SIM, "run", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin(settings: tuple[str, ...], folder: Path, *arguments: str, rounds: int) -> tuple[subprocess.Popen[str], int]:
    """Start a run, wait until some rounds are recorded, and return it with the id of its engine's process."""
    options = [part for setting in settings for part in ("--set", setting)]
    process = fl_sim(*arguments, "--no-attack", *options, cwd=folder)
    deadline = time.monotonic() + 200
    while not list(folder.glob(f"runs/*/recording/rounds/{rounds:04d}/round.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (run,) = list_runs(folder / "runs")
    return process, json.loads((run.folder / "engine.json").read_text())["pid"]


@pytest.mark.slow
def test_after_sigkill_the_command_goes_on(tiny_settings, run_tiny, tmp_path, monkeypatch):
    many = "federation.num_rounds=60"
    command, engine = begin((*tiny_settings, many), tmp_path, "--engine", "inprocess", rounds=20)
    (run,) = list_runs(tmp_path / "runs")
    os.kill(engine, signal.SIGSTOP)  # or it might be done before it is killed
    command.kill()
    command.communicate()
    # The engine has outlived its command: two servers must not write into one run.
    refused = CliRunner().invoke(app, ["run", "--resume", str(run.folder)])
    assert refused.exit_code == 2
    assert "its federation is still running" in refused.stderr
    os.killpg(engine, signal.SIGKILL)
    while is_locked(run.folder):
        time.sleep(0.01)
    monkeypatch.chdir(tmp_path)
    assert "killed" in CliRunner().invoke(app, ["runs"]).stdout

    going_on = fl_sim("--resume", "latest", "--no-attack", cwd=tmp_path)
    output, errors = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, errors
    assert re.search(r"resumed: goes on after round (19|[2-5]\d)", errors)
    assert output.strip().endswith(run.folder.name)
    assert contents(run) == contents(run_tiny(many))
    again = CliRunner().invoke(app, ["run", "--resume", str(run.folder)])
    assert again.exit_code == 2
    assert "has finished" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_rounds", "num_done"),
    [
        pytest.param("ray", 12, 3, marks=[pytest.mark.ray, pytest.mark.xdist_group("ray")]),
        pytest.param("deployment", 3, 1, marks=pytest.mark.xdist_group("deployment")),  # a round takes seconds here
    ],
)
def test_an_engine_of_many_processes_that_is_killed_goes_on(
    tiny_settings, run_tiny, tmp_path, kind, num_rounds, num_done
):
    many = f"federation.num_rounds={num_rounds}"
    command, engine = begin((*tiny_settings, many), tmp_path, "--engine", kind, rounds=num_done)
    os.killpg(engine, signal.SIGKILL)
    _, errors = command.communicate(timeout=100)
    assert command.returncode == 1
    assert "exit code -9" in errors
    going_on = fl_sim("--resume", "latest", "--engine", kind, "--no-attack", cwd=tmp_path)
    _, errors = going_on.communicate(timeout=400)
    assert going_on.returncode == 0, errors
    (run,) = list_runs(tmp_path / "runs")
    assert contents(run) == contents(run_tiny(many))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "'nowhere' is not a run"),
        (["--resume", "latest"], "no runs in 'runs'"),
        (["--resume", "nowhere", "--set", "seed=1"], "leave out EXPERIMENT.toml and --set"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_client_s_own_account_of_its_privacy_is_not_cut_short(tmp_path, tiny):
    private = "defenses=[{name='dp_sgd', options={clip_norm=1.0, noise_multiplier=1.0}}]"
    run = create_run(tiny(private), tmp_path / "runs")
    done = CliRunner().invoke(app, ["run", "--resume", str(run.folder)])
    assert done.exit_code == 2
    assert "counts its rounds itself" in done.stderr
