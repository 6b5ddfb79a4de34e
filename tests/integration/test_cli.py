"""The command line as a person uses it: what is printed, what is written, and the exit code."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_sim.cli import app
from fl_sim.run_store import list_runs

FL_SIM = str(Path(sys.executable).parent / "fl-sim")
SMALL = ["--engine", "inprocess", "--set", "attack.options.steps=4"]
TINY_SETTINGS = [
    "name=tiny",
    "data.num_clients=2",
    "data.examples_per_client=3",
    "model.name=mlp",
    "model.options.hidden=[12]",
    "federation.num_rounds=2",
    "training.batch_size=2",
]


def fl_sim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FL_SIM, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def tiny_settings() -> list[str]:
    return [argument for setting in TINY_SETTINGS for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which one tiny run was made."""
    folder = tmp_path_factory.mktemp("workplace")
    done = fl_sim("run", *tiny_settings(), *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_run_names_the_folder_last_and_makes_the_page(workplace):
    folder, done = workplace
    (run,) = list_runs(folder / "runs")
    assert done.stdout.strip().split("\n")[-1] == f"runs/{run.folder.name}"
    assert run.report_path.read_text().startswith("<!doctype html>")
    assert "page:" in done.stderr


def test_scores_as_json_say_what_was_granted_and_what_a_guess_scores(workplace):
    rows = json.loads(fl_sim("scores", "latest", "--format", "json", cwd=workplace[0]).stdout)
    assert [(row["round"], row["client"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert row["threat_model"] == "honest_but_curious"
        assert "label_counts" not in row["granted"]
        assert len(row["psnr_db"]) == len(row["ssim"]) == 3
        assert row["baseline_mean_image_psnr_db"] > 0


def test_scores_as_csv_have_the_same_rows(workplace):
    rows = list(csv.DictReader(io.StringIO(fl_sim("scores", "latest", "--format", "csv", cwd=workplace[0]).stdout)))
    assert len(rows) == 4
    assert {row["attack"] for row in rows} == {"automatic"}


def test_attack_later_skips_what_is_finished_and_adds_what_is_new(workplace):
    folder, _ = workplace
    again = fl_sim("attack", "latest", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 attacks were finished before" in again.stderr
    other = ["attack", "latest", "--attack", "inverting_gradients", "--rounds", "2", "--clients", "1"]
    done = fl_sim(*other, "--set", "steps=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = json.loads(fl_sim("scores", "latest", "--format", "json", cwd=folder).stdout)
    assert [(row["round"], row["client"]) for row in rows if row["attack"] == "inverting_gradients"] == [(2, 1)]


def test_runs_and_report(workplace):
    folder, _ = workplace
    listed = fl_sim("runs", cwd=folder)
    assert "finished" in listed.stdout
    assert "tiny" in listed.stdout
    reported = fl_sim("report", "latest", "--quiet", cwd=folder)
    assert reported.stdout.strip().endswith("report/index.html")
    assert reported.stderr == ""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "femnist_cnn"),
        ("datasets", "digits"),
        ("partitioners", "dirichlet"),
        ("defenses", "clipping"),
        ("attacks", "fedavg_leakage"),
        ("labels", "bias_gradient"),
        ("priors", "total_variation"),
        ("threat-models", "known_label_counts"),
    ],
)
def test_list(kind, name):
    done = CliRunner().invoke(app, ["list", kind])
    assert done.exit_code == 0, done.output
    assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "does not exist"),
        (["run", "--set", "training.epoch=3"], "training.epoch: unknown key"),
        (["run", "--set", "model.name=vgg"], "unknown model 'vgg'; known:"),
        (["run", "--set", "model.options.depth=3"], "model.options: unknown key 'depth'"),
        (["run", "--set", "attack.name=magic"], "unknown attack 'magic'"),
        (["run", "--set", "attack.options.steps=many"], "attack.options.steps"),
        (["run", "--set", "attack.options.steps=0"], "steps must be >= 1, got 0"),
        (["run", "--set", "attack.threat_model=oracle"], "unknown threat model 'oracle'"),
        (["run", "--set", "attack.clients=[9]"], "attack.clients: expected numbers from 0 to 3, got 9"),
        (["run", "--set", "defenses=[{name='clipping'}]"], "defenses.0.options: 'clip_norm' is required"),
        (["run", "--set", "data.num_clients=100000"], "too few"),
        (["run", "--engine", "warp"], "--engine: expected one of ray, inprocess, deployment, got 'warp'"),
        (["run", "--superlink", "here:8000"], "--superlink: needs --engine deployment, got --engine ray"),
        (["run", "--engine", "deployment", "--superlink", "8000"], "--superlink: expected HOST:PORT"),
        (["run", "--root-certificates", "ca.crt"], "--root-certificates: belongs to --superlink"),
        (["attack", "latest"], "no runs in"),
    ],
)
def test_mistakes_are_one_line_exit_2_and_nothing_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = fl_sim("report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a run" in done.stderr


def test_a_failed_server_is_exit_1_with_the_reason(tmp_path):
    # Every client fails to load its data set, which is gone by then.
    (tmp_path / "my_lab.py").write_text(
        "from fl_sim.models import MODELS\n"
        "def broken(*, dataset, generator):\n"
        "    import sys\n"
        "    if 'fl_sim.engines.process' in sys.argv[0] or sys.argv[0].endswith('process.py'):\n"
        "        raise RuntimeError('out of magic')\n"
        "    return MODELS['mlp'](dataset=dataset, generator=generator)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [FL_SIM, "run", *tiny_settings(), "--set", "model={name='my_lab:broken'}", "--engine", "inprocess"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "the federation failed: RuntimeError: out of magic" in done.stderr
