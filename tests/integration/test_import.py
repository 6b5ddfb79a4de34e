"""`fl-sim import`: files of another tool become a recording on which every command gives what it gives on our own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from attacker.attack_store import AttackSetting, ResultKey
from attacker.attack_worker import attack_observation, build_model, observe_update
from attacker.diagnosis.verdict import Outcome
from attacker.truth import read_truth
from fl_sim.cli import app
from fl_sim.errors import MissingDataError, RecordingError
from fl_sim.run_store import RunStore, list_runs

RATE = 0.1


class PlainNet(nn.Module):
    """As a user writes it: no data set, no generator, no normalisation."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.hidden(images.flatten(1)))))


def plain_net() -> nn.Module:
    return PlainNet(7)


def unannotated():
    return PlainNet(7)


PLAIN = f"{__name__}:PlainNet"


def fl_sim(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def the_run(folder) -> RunStore:
    (run,) = list_runs(folder)
    return run


@pytest.fixture
def trained(tmp_path):
    """Files of one update: a network of a user's own, two epochs of one batch on eight images, input normalised."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(8, 1, 8, 8, generator=generator)  # no bytes
    labels = torch.arange(8) % 4
    torch.manual_seed(2)
    network = PlainNet()
    save_file(network.state_dict(), tmp_path / "before.safetensors")
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(network((images - 0.4) / 0.25), labels).backward()
        optimizer.step()
    np.savez(tmp_path / "after.npz", *(tensor.numpy() for tensor in network.state_dict().values()))
    np.savez(tmp_path / "truth.npz", images=images.numpy(), labels=labels.numpy())
    return tmp_path


def one_update(folder, *arguments, **changes):
    options = {
        "before": folder / "before.safetensors",
        "after": folder / "after.npz",
        "model": PLAIN,
        "image-shape": "1,8,8",
        "num-classes": 10,
        "num-examples": 8,
        "mean": 0.4,
        "std": 0.25,
        "runs-dir": folder / "runs",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    named = [text for name, value in options.items() if value is not None for text in (f"--{name}", value)]
    return fl_sim("import", *named, "--set", f"learning_rate={RATE}", "--set", "epochs=2", *arguments)


def test_our_own_run_through_files_gives_the_same_reconstructions_and_scores(run_tiny, tmp_path):
    run = run_tiny("training.epochs=1", "training.order=static")
    manifest, updates = run.recording.read_manifest(), []
    truth = read_truth(run.folder)
    for server_round in run.recording.rounds():
        record = run.recording.read_round(server_round)
        np.savez(tmp_path / f"{server_round}.npz", **{n: t.numpy() for n, t in record.global_parameters.items()})
        for update in record.updates:
            file = f"{server_round}-{update.client_id}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in update.tensors.items()}, tmp_path / file)
            where = {"round": server_round, "client": update.client_id, "before": f"{server_round}.npz", "after": file}
            updates.append({**where, "num_examples": update.num_examples})
    private = truth.private_batch(0, 1, 2)
    images = (private.images * 255).round().to(torch.uint8)
    np.savez(tmp_path / "p.npz", images=images[:, 0], labels=private.labels, clients=np.repeat([0, 1, 2], 6))
    known = {
        "name": "twin",
        "truth": "p.npz",
        "model": {"name": "mlp", "options": {"hidden": [16]}},
        "data": {
            "image_shape": list(manifest.dataset.image_shape),
            "num_classes": 10,
            "mean": list(manifest.dataset.mean),
            "std": list(manifest.dataset.std),
        },
        "training": {"learning_rate": 0.1, "epochs": 1, "batch_size": 4, "order": "static"},
        "updates": updates,
    }
    (tmp_path / "known.toml").write_text(tomli_w.dumps(known))
    done = fl_sim("import", tmp_path / "known.toml", "--runs-dir", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    twin = the_run(tmp_path / "runs")
    assert twin.recording.read_manifest().local_training == manifest.local_training
    setting = AttackSetting(name="inverting_gradients", options={"steps": 3}, threat_model="honest_but_curious")
    for key in (ResultKey(server_round=2, client_id=1, seed=0), ResultKey(server_round=1, client_id=2, seed=4)):
        found = [
            attack_observation(
                setting,
                key,
                observe_update(one.recording.folder, key.server_round, key.clients, setting.threat_model),
                lambda progress: None,
            ).images
            for one in (run, twin)
        ]
        assert torch.equal(*found)
    theirs = read_truth(twin.folder)
    for client_id in range(3):
        assert torch.equal(theirs.private_batch(client_id).images, truth.private_batch(client_id).images)
        assert torch.equal(theirs.label_counts(client_id), truth.label_counts(client_id))


@pytest.mark.slow
def test_one_update_of_a_users_own_network_through_every_command(trained):
    done = one_update(trained)
    assert done.exit_code == 0, done.output
    run = the_run(trained / "runs")
    assert done.stdout.strip().endswith(run.folder.name)
    for assumption in ("the loss was the mean", "all of a client's images in one step", "plain SGD", "no momentum"):
        assert assumption in done.stderr
        assert any(assumption in sentence for sentence in run.assumed())
    assert "epoch" not in done.stderr  # which was given
    assert not (run.folder / "truth").exists()
    with pytest.raises(MissingDataError):
        read_truth(run.folder)

    labels = fl_sim("labels", run.folder, "--methods", "automatic", "--json", trained / "labels.json")
    assert labels.exit_code == 0, labels.output
    (update,) = json.loads((trained / "labels.json").read_text())["updates"]
    assert update["label_counts"] is None
    assert sum(update["methods"][0]["counts"]) == 8

    attacked = fl_sim("attack", run.folder, "--set", "steps=2", "--workers", "1", "--quiet")
    assert attacked.exit_code == 0, attacked.output
    assert len(list(run.attacks.glob("*/*/reconstruction.safetensors"))) == 1
    page = run.report_path.read_text()
    assert "assumed: clients trained with plain SGD" in page
    assert "fl-sim run" not in page  # nobody can run another federation again
    diagnosed = fl_sim("diagnose", run.folder)
    assert diagnosed.exit_code == 0, diagnosed.output
    assert "without the truth nothing can be replayed" in diagnosed.stdout
    assert "unscored" not in fl_sim("scores", run.folder, "--format", "json").output
    assert "finished" in fl_sim("runs", "--runs-dir", trained / "runs").output
    exposed = fl_sim("exposure", run.folder)
    assert exposed.exit_code == 1
    assert "without the truth nothing can be scored" in exposed.output

    told = fl_sim("truth", run.folder, trained / "truth.npz")
    assert told.exit_code == 0, told.output
    with np.load(trained / "truth.npz") as given:
        assert torch.equal(read_truth(run.folder).private_batch(0).images, torch.from_numpy(given["images"]))
    moved = trained / "elsewhere"
    run.folder.rename(moved)  # the images go with the folder
    assert fl_sim("report", moved, "--quiet").exit_code == 0
    (row,) = json.loads(fl_sim("scores", moved, "--format", "json").stdout)
    assert row["mean_psnr_db"] is not None
    assert "baseline_mean_image_psnr_db" not in row  # one client's images leave nothing to guess from
    # The replay with the truth is the declared training to rounding: names, normalisation and steps are understood.
    replayed = fl_sim("diagnose", moved)
    assert replayed.exit_code == 0, replayed.output
    found = json.loads(next((moved / "diagnosis").glob("*.json")).read_text())
    assert Outcome.MATCHES.value in json.dumps(found)


def test_the_network_is_fed_what_it_was_fed_in_training(trained):
    assert one_update(trained).exit_code == 0
    model = build_model(the_run(trained / "runs").recording.read_manifest())
    plain = PlainNet()
    plain.load_state_dict(model.state_dict())  # the very names of the user's own network
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(model(images), plain((images - 0.4) / 0.25))
    torch.testing.assert_close(model.double()(images.double()), plain.double()((images.double() - 0.4) / 0.25))


def test_a_gradient_and_an_estimate_of_the_number_of_images(tmp_path):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images = torch.rand(5, 1, 8, 8)
    loss = functional.cross_entropy(network(images), torch.arange(5))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    np.savez(tmp_path / "before.npz", *(tensor.numpy() for tensor in network.state_dict().values()))
    np.savez(tmp_path / "gradient.npz", *(gradient.numpy() for gradient in gradients))
    files = ("--before", tmp_path / "before.npz", "--gradient", tmp_path / "gradient.npz")
    shape = ("--image-shape", "1,8,8", "--num-classes", 10, "--runs-dir", tmp_path / "runs")
    done = fl_sim(
        *("import", *files, *shape, "--model", f"{__name__}:small", "--num-examples", "estimate"),
    )
    assert done.exit_code == 0, done.output
    assert "N_c = 5 of client 0 in round 1, as the update tells it" in done.stderr.replace("\n", " ")
    assert "fed pixels in [0, 1] as they are" in done.stderr
    run = the_run(tmp_path / "runs")
    assert run.experiment().federation.algorithm == "fedsgd"
    update = run.recording.read_round(1).updates[0]
    assert update.num_examples == 5
    assert torch.equal(update.tensors["1.weight"], gradients[0])


def small() -> nn.Sequential:
    """A network whose children are its layers: a normalisation must not become one more."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"after": "absent.npz"}, (), "absent.npz does not exist"),
        ({"after": None}, (), "expected one of 'after' (weights) and 'gradient', got both or none"),
        ({"num_examples": None}, (), "--num-examples is required"),
        ({"num_examples": "many"}, (), "num_examples"),
        ({"num_examples": 0}, (), "num_examples must be >= 1 or 'estimate', got 0"),
        ({"image_shape": "1,8"}, (), "image_shape"),
        ({"image_shape": "one"}, (), "--image-shape: expected numbers"),
        ({"mean": "0.5,0.5"}, (), "mean: expected one value for each of 1 channels, got 2"),
        ({"std": 0}, (), "std must be > 0"),
        ({"std": None}, (), "expected mean and std, or neither"),
        ({"model": "no_such"}, (), "unknown model 'no_such'"),
        ({"model": "os:system"}, (), "os:system is no model"),
        ({"model": f"{__name__}:unannotated"}, (), "is no model"),
        ({"model": f"{__name__}:plain_net"}, (), "'hidden.weight': expected shape (7, 64), got (5, 64)"),
        ({}, ("--set", "model.depth=3"), "cannot be called with {'depth': 3}"),
        ({}, ("--set", "learning_rate=-1"), "learning_rate must be a positive number"),
        ({}, ("--set", "optimizer=adam"), "optimizer"),
        ({}, ("--set", "weight_decay=0.1"), "training.weight_decay: unknown key; known keys: batch_size"),
        ({"after": "before"}, (), "holds the very weights of"),
        ({"name": "a/b"}, (), "name must be letters"),
        ({"truth": "absent.npz"}, (), "--truth: absent.npz does not exist"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(trained, changes, arguments, message):
    if changes.get("after") == "before":
        changes = {"after": trained / "before.safetensors"}
    done = one_update(trained, *arguments, **changes)
    assert done.exit_code in (1, 2)
    assert message in done.stderr.replace("\n", " "), done.stderr
    assert not (trained / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": None}, "training.learning_rate is required"),
        ({"two": {}}, "updates: round 1 has two of client 0"),
        ({"two": {"client": 1, "before": "after.npz"}}, "expected one file of weights before round 1"),
        ({"two": {"client": 1, "gradient": "after.npz"}}, "got both or none"),
        ({"unknown": 1}, "unknown: unknown key; known keys: data, model"),
    ],
)
def test_a_manifest_that_cannot_be(trained, change, message):
    update = {"before": "before.safetensors", "after": "after.npz", "num_examples": 8}
    known = {
        "model": {"name": PLAIN},
        "data": {"image_shape": [1, 8, 8], "num_classes": 10},
        "training": {} if "learning_rate" in change else {"learning_rate": 0.1},
        "updates": [update, {**update, **change["two"]}] if "two" in change else [update],
        **({"unknown": 1} if "unknown" in change else {}),
    }
    (trained / "known.toml").write_text(tomli_w.dumps(known))
    done = fl_sim("import", trained / "known.toml", "--runs-dir", trained / "runs")
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " "), done.stderr
    assert not (trained / "runs").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"images": np.zeros((8, 8, 8), dtype=np.uint8)}, "expected an entry 'labels'"),
        ({"images": np.full((8, 1, 8, 8), 2.0), "labels": np.arange(8)}, "expected pixels in [0, 1]"),
        ({"images": np.zeros((8, 3, 8, 8)), "labels": np.arange(8)}, "expected (N, 1, 8, 8) as the recording says"),
        ({"images": np.zeros((8, 1, 8, 8)), "labels": np.full(8, 10)}, "expected values below the 10 classes, got 10"),
        (
            {"images": np.zeros((8, 1, 8, 8)), "labels": np.arange(8), "clients": np.ones(8, dtype=int)},
            "got none of client 0",
        ),
    ],
)
def test_a_truth_that_is_not_the_recordings_is_refused(trained, entries, message):
    assert one_update(trained).exit_code == 0
    run = the_run(trained / "runs")
    np.savez(trained / "wrong.npz", **entries)
    done = fl_sim("truth", run.folder, trained / "wrong.npz")
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " "), done.stderr
    assert not (run.folder / "truth" / "truth.json").exists()
    assert not (run.folder / "truth" / "private.npz").exists()


def test_pixels_that_are_not_those_of_the_images_are_refused(trained):
    assert one_update(trained).exit_code == 0
    run = the_run(trained / "runs")
    assert fl_sim("truth", run.folder, trained / "truth.npz").exit_code == 0
    path = run.folder / "truth" / "private.npz"
    with np.load(path) as kept:
        entries = dict(kept)
    for pixels in (entries["pixels"] + 0.1, entries["pixels"][:4], entries["pixels"].astype(np.float64)):
        np.savez(path, **{**entries, "pixels": pixels})
        with pytest.raises(RecordingError, match="pixels: expected"):
            read_truth(run.folder)


def test_a_truth_of_another_size_is_told_and_the_order_of_batches_is_nobodys(trained):
    assert one_update(trained, "--set", "batch_size=4", num_examples=7).exit_code == 0
    run = the_run(trained / "runs")
    told = fl_sim("truth", run.folder, trained / "truth.npz")
    assert "client 0 holds 8 images, and the recording says N_c = 7" in told.stderr
    again = fl_sim("truth", run.folder, trained / "truth.npz")
    assert again.exit_code == 2
    assert "has a truth already" in again.stderr
    truth, recipe = read_truth(run.folder), run.recording.read_manifest().local_training
    assert not truth.knows_order(0, recipe)
    assert truth.knows_order(0, replace(recipe, order="static"))
    assert truth.knows_order(0, replace(recipe, batch_size=None))
    granted = fl_sim("attack", run.folder, "--threat-model", "known_batch_label_counts", "--quiet")
    assert granted.exit_code == 1
    assert "which image stood in which batch is not known" in granted.stderr.replace("\n", " ")
