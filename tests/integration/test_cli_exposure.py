"""``fl-sim exposure`` on a tiny recorded run, and attacks on the mean of several rounds."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from attacker.attack_worker import observe
from attacker.campaign import plan_campaign
from attacker.truth import read_truth
from fl_sim.cli import app
from fl_sim.config import AttackConfig
from fl_sim.errors import ConfigError
from fl_sim.run_store import RunStore


@pytest.fixture(scope="module")
def recorded(run_tiny) -> RunStore:
    return run_tiny(
        "federation.num_rounds=3",
        "attack.name=inverting_gradients",
        "attack.options={steps=2}",
        "defenses=[{name='gaussian_noise', options={stddev=0.01}}]",
    )


def fl_sim_exposure(run: RunStore, *arguments: str):
    return CliRunner().invoke(app, ["exposure", str(run.folder), *arguments], env={"COLUMNS": "80"})


def test_every_round_and_client_with_the_client_s_data(recorded) -> None:
    done = fl_sim_exposure(recorded, "--rounds", "1,3")
    assert done.exit_code == 0, done.output
    (folder,) = (recorded.folder / "exposure").iterdir()
    assert done.stdout.strip().split("\n")[-1] == str(folder)
    assert "Computed with the truth" in " ".join(done.stderr.split())
    lines = list(csv.DictReader((folder / "exposure.csv").read_text().splitlines()))
    assert [(line["round"], line["client"]) for line in lines] == [(r, c) for r in "13" for c in "012"]
    truth = read_truth(recorded.folder)
    for line in lines:
        assert int(line["num_labels"]) == int((truth.label_counts(int(line["client"])) > 0).sum())
        difference = float(line["psnr_db"]) - float(line["mean_image_psnr_db"])
        assert float(line["exposure_db"]) == pytest.approx(difference, abs=1e-3)
    content = json.loads((folder / "exposure.json").read_text())
    assert content["threat_model"] == "honest_but_curious"
    assert content["realistic"]
    assert [one["server_round"] for one in content["rounds"]] == [1, 3]
    accuracies = {one.server_round: one.accuracy for one in recorded.evaluations()}
    assert [one["accuracy"] for one in content["rounds"]] == [accuracies[0], accuracies[2]]
    assert (folder / "exposure.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_truth_nothing_is_said(recorded, tmp_path) -> None:
    shutil.copytree(recorded.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "truth")
    done = fl_sim_exposure(RunStore(tmp_path / "run"))
    assert done.exit_code == 1
    assert "without the truth nothing can be scored" in " ".join(done.stderr.split())


MEAN = AttackConfig(name="inverting_gradients", options={"steps": 2}, mean_of_rounds=2, clients=(1,))


def test_the_mean_of_the_last_rounds_is_attacked(recorded) -> None:
    plan = plan_campaign(recorded, MEAN)
    assert [(task.key.server_round, task.earlier_rounds) for task in plan.tasks] == [(2, (1,)), (3, (2,))]
    assert plan.setting.label != plan_campaign(recorded, replace(MEAN, mean_of_rounds=1)).setting.label
    known = replace(MEAN, threat_model="known_defenses")
    seen = observe(plan_campaign(recorded, known).tasks[0])
    single = [observe(task) for task in plan_campaign(recorded, replace(known, mean_of_rounds=1)).tasks[:2]]
    assert (seen.num_rounds, single[0].num_rounds) == (2, 1)
    for name, delta in seen.delta.items():
        torch.testing.assert_close(delta, (single[0].delta[name] + single[1].delta[name]) / 2)
        before, after = (observation.global_parameters[name] for observation in single)
        torch.testing.assert_close(seen.global_parameters[name], (before + after) / 2)


def test_too_few_rounds_and_several_clients_are_refused(recorded) -> None:
    with pytest.raises(ConfigError, match="with 3 rounds before them; stored rounds"):
        plan_campaign(recorded, replace(MEAN, mean_of_rounds=4))
    with pytest.raises(ValueError, match="expected it to be 1 beside cohort = 2, got 2"):
        replace(MEAN, cohort=2)
