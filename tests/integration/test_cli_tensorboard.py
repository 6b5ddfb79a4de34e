"""Event files for TensorBoard, read back with TensorBoard's own reader."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from attacker.report.content import ReportContent
from attacker.report.event_files import follow_federation, write_event_files
from attacker.truth import read_truth
from fl_sim.events import Event, EventKind
from fl_sim.run_store import RoundEvaluation, list_runs
from tests.integration.test_cli import SMALL, fl_sim, tiny_settings


def read(folder):
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return multiplexer


def curve(folder, run, tag):
    return {event.step: event.value for event in read(folder).Scalars(run, tag)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    done = fl_sim("run", *tiny_settings(), *SMALL, "--tensorboard", cwd=folder)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(folder / "runs")
    return folder, run


def test_the_model_by_round_is_what_was_evaluated(place):
    _, run = place
    expected = {evaluation.server_round: evaluation.accuracy for evaluation in run.evaluations()}
    assert curve(run.tensorboard, "federation", "model/accuracy") == pytest.approx(expected)


def test_leakage_by_round_is_what_scores_prints(place):
    folder, run = place
    rows = json.loads(fl_sim("scores", "latest", "--format", "json", cwd=folder).stdout)
    setting = rows[0]["setting"]
    of_client = {row["round"]: row["mean_psnr_db"] for row in rows if row["client"] == 1}
    assert curve(run.tensorboard, f"{setting}/client 1", "leakage/psnr_db") == pytest.approx(of_client)
    in_round_2 = [row["mean_psnr_db"] for row in rows if row["round"] == 2]
    means = curve(run.tensorboard, f"{setting}/all clients", "leakage/psnr_db")
    assert means[2] == pytest.approx(sum(in_round_2) / 2)
    guesses = [row["baseline_mean_image_psnr_db"] for row in rows if row["round"] == 1]
    guess = curve(run.tensorboard, "guess, mean image", "leakage/psnr_db")
    assert guess[1] == pytest.approx(sum(guesses) / 2)


def test_pictures_show_private_images_above_reconstructions(place):
    _, run = place
    reader = read(run.tensorboard)
    (client,) = (name for name in reader.Runs() if name.endswith("client 0"))
    images = reader.Images(client, "images")
    assert [image.step for image in images] == [1, 2]
    picture = Image.open(io.BytesIO(images[0].encoded_image_string))
    assert picture.size == (3 * 86, 2 * 84 + 2)  # three images of 28 x 28, enlarged three times, two pixels after each
    private = read_truth(run.folder).private_batch(0).images
    shown = torch.from_numpy(np.asarray(picture, dtype=np.float32)[..., 0] / 255)
    tiles = [shown[1:84:3, 86 * column + 1 : 86 * column + 84 : 3] for column in range(3)]
    distances = torch.stack([torch.stack([(tile - image[0]).abs().max() for image in private]) for tile in tiles])
    assert distances.min(dim=1).values.max() < 0.01  # every tile of the upper row is a private image
    assert distances.argmin(dim=1).unique().numel() == 3


def test_a_later_attack_keeps_the_files_up_to_date_and_says_nothing_twice(place):
    folder, run = place
    before = curve(run.tensorboard, "federation", "model/accuracy")
    done = fl_sim("attack", "latest", "--attack", "analytic", "--rounds", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert any(name.startswith("analytic-") for name in read(run.tensorboard).Runs())
    assert len(read(run.tensorboard).Scalars("federation", "model/accuracy")) == len(before)


def test_without_the_option_there_are_none(tmp_path):
    done = fl_sim("run", *tiny_settings(), *SMALL, "--no-attack", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert not run.tensorboard.exists()


def test_a_running_federation_is_written_as_it_goes(tmp_path):
    events = [
        Event(kind=EventKind.FEDERATION_STARTED, total=2),
        Event(kind=EventKind.EVALUATED, server_round=0, accuracy=0.1, loss=2.3),
        Event(kind=EventKind.EVALUATED, server_round=1, accuracy=0.5, loss=None),
    ]
    following = follow_federation(events, tmp_path)
    assert [next(following) for _ in events] == events  # not yet closed: what was evaluated is on disk all the same
    assert curve(tmp_path, "federation", "model/accuracy") == pytest.approx({0: 0.1, 1: 0.5})
    assert curve(tmp_path, "federation", "model/loss") == pytest.approx({0: 2.3})  # a diverged loss has no point
    following.close()


def test_a_resumed_federation_goes_on_where_it_was(tmp_path):
    def part(kind, rounds, first_accuracy):
        yield Event(kind=kind, server_round=rounds[0] - 1)
        for server_round in rounds:
            yield Event(kind=EventKind.EVALUATED, server_round=server_round, accuracy=first_accuracy, loss=1.0)

    list(follow_federation(part(EventKind.FEDERATION_STARTED, (1, 2, 3), 0.2), tmp_path))
    list(follow_federation(part(EventKind.FEDERATION_RESUMED, (3, 4), 0.7), tmp_path))
    assert curve(tmp_path, "federation", "model/accuracy") == pytest.approx({1: 0.2, 2: 0.2, 3: 0.7, 4: 0.7})


def test_writing_again_replaces_all(tmp_path):
    for accuracy in (0.1, 0.9):
        evaluations = (RoundEvaluation(server_round=1, accuracy=accuracy, loss=1.0),)
        write_event_files(tmp_path, ReportContent(run_name="run", created="now", evaluations=evaluations))
    assert curve(tmp_path, "federation", "model/accuracy") == {1: pytest.approx(0.9)}
    assert len(list(tmp_path.rglob("events.*"))) == 1
