"""``fl-sim diagnose`` on tiny recorded runs."""

import json
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from attacker.attack import ignore_progress
from attacker.attack_store import AttackStore
from attacker.attack_worker import run_task
from attacker.campaign import plan_campaign
from attacker.truth import read_truth
from fl_sim.cli import app
from fl_sim.config import AttackConfig
from fl_sim.run_store import RunStore


@pytest.fixture(scope="module")
def recorded(run_tiny) -> RunStore:
    return run_tiny("training.momentum=0.5")


def fl_sim_diagnose(run: RunStore, *arguments: str):
    return CliRunner().invoke(app, ["diagnose", str(run.folder), *arguments], env={"COLUMNS": "120"})


def written(run: RunStore, server_round: int = 1, client: int = 0):
    return json.loads((run.folder / "diagnosis" / f"round-{server_round}-client-{client}.json").read_text())


def test_a_recorded_update_matches_and_attacks_stand_beside_the_truth(recorded) -> None:
    attack = AttackConfig(name="inverting_gradients", options={"steps": 3}, rounds=(2,), clients=(1,))
    plan = plan_campaign(recorded, attack)
    for task in plan.tasks:
        AttackStore(task.results).write_setting(plan.setting)
        run_task(task, ignore_progress)
    done = fl_sim_diagnose(recorded, "--round", "2", "--client", "1")
    assert done.exit_code == 0, done.output
    assert "optimisation is the limit" in " ".join(done.stdout.split())
    content = written(recorded, 2, 1)
    assert content["verdict"]["outcome"] == "matches"
    assert content["verdict"]["residual"] < 1e-9
    assert content["consistency"]["worst"] != "impossible"
    (attempt,) = content["attacks"]
    assert (attempt["attack"], attempt["distance"], attempt["seed"]) == ("inverting_gradients", "cosine", 0)
    assert attempt["truth"] < 1e-6 < attempt["found"]
    assert "a better search would have come closer" in " ".join(done.stdout.split())


def test_the_first_stored_update_is_taken(recorded) -> None:
    done = fl_sim_diagnose(recorded, "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().endswith("round-1-client-0.json")
    assert (written(recorded)["round"], written(recorded)["client"]) == (1, 0)


def test_another_recipe_than_the_declared_one_is_named(recorded, tmp_path) -> None:
    shutil.copytree(recorded.folder, tmp_path / "run")
    path = tmp_path / "run" / "recording" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["local_training"]["momentum"] = 0.0
    path.write_text(json.dumps(manifest))
    done = fl_sim_diagnose(RunStore(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert "explained by momentum (momentum 0.5 where momentum 0 is declared)" in " ".join(done.stdout.split())
    assert written(RunStore(tmp_path / "run"))["verdict"]["cause"] == "momentum"


def test_a_defense_is_named_and_said_to_be_declared(run_tiny) -> None:
    run = run_tiny("federation.num_rounds=1", "defenses=[{name='gaussian_noise', options={stddev=0.02}}]")
    done = fl_sim_diagnose(run)
    assert done.exit_code == 0, done.output
    assert "declared as gaussian_noise" in done.stdout
    content = written(run)
    assert content["verdict"]["cause"] == "noise"
    assert content["consistency"]["worst"] == "impossible"


def test_without_the_truth_only_consistency_is_checked(recorded, tmp_path) -> None:
    shutil.copytree(recorded.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "truth")
    run = RunStore(tmp_path / "run")
    done = fl_sim_diagnose(run)
    assert done.exit_code == 0, done.output
    assert "Consistency only" in done.stdout
    content = written(run)
    assert content["verdict"] is None
    assert {check["name"] for check in content["consistency"]["checks"]} >= {"norm", "label_counts", "spectrum"}


def test_an_update_that_is_not_finite_is_not_replayed(recorded, tmp_path) -> None:
    shutil.copytree(recorded.folder, tmp_path / "run")
    run = RunStore(tmp_path / "run")
    record = run.recording.read_round(1)
    # Our server would have refused it; a recording of another one may hold it.
    broken = replace(record.updates[0], tensors={name: t / 0 for name, t in record.updates[0].tensors.items()})
    run.recording.write_round(replace(record, updates=(broken,)), keep_clients=[0], keep_round=True)
    done = fl_sim_diagnose(run)
    assert done.exit_code == 0, done.output
    content = written(run)
    assert (content["verdict"], content["consistency"]["worst"]) == (None, "impossible")
    assert "not finite" in content["note"]


def test_what_is_not_stored_is_an_error(recorded) -> None:
    done = fl_sim_diagnose(recorded, "--round", "9")
    assert done.exit_code == 2
    assert "no stored update matches --round 9; stored rounds: [1, 2]" in " ".join(done.stderr.split())


def test_the_order_drawn_again_is_the_client_s_own(recorded) -> None:
    recipe = recorded.recording.read_manifest().local_training
    truth = read_truth(recorded.folder)
    visits = truth.visits(1, 2, recipe, epochs=4)
    assert visits.shape == (4, 6)
    assert (visits[:2] == truth.visits(1, 2, recipe, epochs=2)).all()
    assert (visits != truth.visits(1, 1, recipe, epochs=4)).any()
