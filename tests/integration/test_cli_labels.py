"""``fl-sim labels`` on a tiny recorded run: what is printed, what JSON holds, and that the truth only scores."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from attacker.truth import read_truth
from fl_sim.cli import app
from fl_sim.cli.labels import compact
from fl_sim.run_store import RunStore


@pytest.fixture(scope="module")
def run(run_tiny) -> RunStore:
    return run_tiny("training.epochs=1", "training.batch_size=3", "training.learning_rate=0.02")


def fl_sim_labels(run: RunStore, *arguments: str):
    return CliRunner().invoke(app, ["labels", str(run.folder), *arguments], env={"COLUMNS": "120"})


def test_every_update_and_every_method_with_their_wrong_labels(run, tmp_path):
    done = fl_sim_labels(run, "--json", str(tmp_path / "labels.json"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "labels.json").read_text())
    truth = read_truth(run.folder)
    assert [(update["round"], update["client"]) for update in found["updates"]] == [
        (server_round, client) for server_round in (1, 2) for client in (0, 1, 2)
    ]
    assert found["realistic"]
    assert "label_counts" not in found["granted"]
    for update in found["updates"]:
        true = truth.label_counts(update["client"])
        assert update["label_counts"] == true.tolist()
        assert compact(update["label_counts"]) in done.stdout
        assert update["num_examples_estimate"]["estimate"]["num_examples"] == update["num_examples"] == 6
        assert update["num_examples_estimate"]["reason"] is None
        assert update["wrong_guesses"].keys() == {"uniform over classes", "class frequencies"}
        for trial in update["methods"]:
            if trial["counts"] is None:
                assert trial["wrong"] is None
                assert trial["reason"]
                continue
            assert sum(trial["counts"]) == 6
            assert trial["wrong"] == int((torch.tensor(trial["counts"]) - true).abs().sum()) // 2
    assert "idlg does not apply to 6 of 6 updates" in done.stdout
    exact = {line["method"]: line["mean"] for line in found["summary"]}
    assert exact["automatic"] == 0
    assert exact["guess: uniform over classes"] > 0
    automatic = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["automatic"])
    assert automatic.split()[1:] == ["0.00", "±", "0.00", "6", "6/6"]


def test_a_choice_of_rounds_clients_and_methods(run, tmp_path):
    chosen = ["--round", "2", "--client", "0,2", "--methods", "llg,bias_gradient"]
    done = fl_sim_labels(run, *chosen, "--json", str(tmp_path / "labels.json"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "labels.json").read_text())
    assert [(update["round"], update["client"]) for update in found["updates"]] == [(2, 0), (2, 2)]
    assert [trial["method"] for trial in found["updates"][0]["methods"]] == ["llg", "bias_gradient"]
    assert "interpolated" not in done.stdout


def test_no_method_depends_on_the_truth_or_on_the_other_methods(run, tmp_path):
    counts = []
    for attempt, methods in (("with", "bias_gradient,interpolated"), ("without", "interpolated")):
        copy = RunStore(tmp_path / attempt)
        shutil.copytree(run.folder, copy.folder)
        if attempt == "without":
            shutil.rmtree(copy.folder / "truth")
        done = fl_sim_labels(copy, "--methods", methods, "--json", str(tmp_path / f"{attempt}.json"))
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / f"{attempt}.json").read_text())
        counts.append([update["methods"][-1]["counts"] for update in found["updates"]])
    assert counts[0] == counts[1]
    assert "unscored" in done.stderr
    assert found["updates"][0]["label_counts"] is None
    assert found["updates"][0]["methods"][0]["wrong"] is None
    assert found["summary"][0]["mean"] is None


def test_what_the_update_says_of_the_number_of_images_or_why_not(run):
    counted = fl_sim_labels(run, "--round", "2", "--client", "1", "--methods", "llg")
    assert counted.exit_code == 0, counted.output
    row = next(line.split() for line in counted.stdout.splitlines() if line.split()[-1:] == ["rank"])
    assert row == ["2", "1", "6", "6", "6", "to", "6", "rank"]
    secretive = ["--round", "2", "--client", "1", "--methods", "llg", "--threat-model", "unknown_epochs"]
    refused = fl_sim_labels(run, *secretive)
    assert refused.exit_code == 0, refused.output
    assert "does not apply: the attack needs local_training" in " ".join(refused.stdout.split())


def test_granting_the_counts_is_marked_and_changes_nothing(run):
    done = fl_sim_labels(run, "--round", "1", "--methods", "llg", "--threat-model", "known_label_counts")
    assert done.exit_code == 0, done.output
    assert "known_label_counts, an upper bound" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "llg,magic"], "unknown label recovery 'magic'; known:"),
        (["--threat-model", "oracle"], "unknown threat model 'oracle'"),
        (["--round", "7"], "no stored update matches --round 7 and --client all; stored rounds: [1, 2]"),
        (["--client", "first"], "--client: expected 'all' or numbers"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run, arguments, message):
    done = fl_sim_labels(run, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_compact_counts():
    assert compact([2, 0, 0, 1, 0, 0, 0, 4]) == "0x2 3 7x4"
    assert compact([0, 0]) == ""
