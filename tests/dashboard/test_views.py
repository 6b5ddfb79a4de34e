"""Views of run folders: what they show is what is on disk, and the attacker's shows no truth."""

import fcntl
import io
import json
import os
import socket
import time
from dataclasses import asdict, replace

import numpy
import psutil
import pytest
import torch
from PIL import Image

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.attack_worker import StepReporter, TaskProgress, make_attack, observe, run_task
from attacker.campaign import plan_campaign
from attacker.campaign_journal import FORMAT, CampaignEntry, RunningAttack, journal, journal_path, read_journal
from attacker.campaign_observer import CampaignObserver, TaskFailure
from attacker.metrics.psnr import psnr_db
from attacker.snapshots import SnapshotWriter, read_snapshot, snapshot_path
from dashboard.alike_view import alike_view
from dashboard.card_view import card_view, round_cards, thin_curve
from dashboard.file_cache import FileCache
from dashboard.json_text import json_bytes
from dashboard.pictures import draw_sheet, sheet_view
from dashboard.progress_view import campaign_views, progress_view
from dashboard.run_index import RunIndex, UnknownRunError
from dashboard.run_reader import HiddenError, RunReader
from dashboard.run_view import run_view, runs_view
from dashboard.spectrum_view import spectrum_view
from dashboard.tradeoff_view import tradeoff_view
from dashboard.training_view import training_view
from fl_sim.config import AttackConfig
from fl_sim.errors import ConfigError, RecordingError
from fl_sim.events import Event, EventKind, append_event
from fl_sim.run_store import RunState, RunStatus, RunStore

FAST = AttackConfig(name="fedavg_leakage", options={"steps": 4}, rounds=(1,), clients=(0,))


def reader_of(index: RunIndex, run_id: str = "plain", *, sees_truth: bool = True) -> RunReader:
    return RunReader(index.find(run_id).store, sees_truth=sees_truth)


def realistic(reader: RunReader):
    return next(setting for setting in reader.settings()[0] if setting.threat_model.realistic)


def test_the_list_has_every_run_with_what_leaked_and_says_what_is_damaged(folders):
    (folders / "runs/other/recording/manifest.json").write_text("{")
    index = RunIndex(folders / "runs", folders / "defended")
    lines = {line.run_id: line for line in runs_view(index, sees_truth=True).runs}
    assert set(lines) == {"plain", "noisy", "other", "study~noisy"}
    assert "manifest.json" in lines["other"].problem
    assert lines["noisy"].defenses.startswith("gaussian_noise")
    assert (lines["study~noisy"].study, lines["plain"].study) == ("study", "")
    best = lines["plain"].best
    assert best is not None
    assert best.realistic  # an upper bound makes the headline only where there is nothing else
    assert best.line.score is not None
    scores = [result.score for result in run_view(index.find("plain"), sees_truth=True).results if result.score]
    assert best.line.score.recovered / best.line.score.num_images == max(
        score.recovered / score.num_images for score in scores
    )


def test_pairs_are_the_scored_ones_best_first(index):
    reader = reader_of(index)
    setting = realistic(reader)
    key = ResultKey(server_round=2, client_id=1, seed=0)
    card = card_view(reader, setting, key)
    private, found = reader.private_batch((1,)), reader.reconstruction(setting, key)
    assert sorted(pair.private for pair in card.pairs) == list(range(6))
    values = [pair.psnr_db for pair in card.pairs]
    assert values == sorted(values, reverse=True)
    for pair in card.pairs:
        measured = psnr_db(found.images[[pair.reconstruction]], private.images[[pair.private]]).item()
        assert pair.psnr_db == pytest.approx(measured, abs=1e-4)
        assert pair.label == str(int(private.labels[pair.private]))
        assert pair.recovered_label == str(int(found.labels[pair.reconstruction]))


def test_the_attacker_sees_reconstructions_in_their_own_order_and_no_granted_truth(index):
    reader = reader_of(index, sees_truth=False)
    settings, _ = reader.settings()
    assert [setting.threat_model.name for setting in settings] == ["honest_but_curious"]
    assert reader.num_hidden() == 1
    card = card_view(reader, settings[0], ResultKey(server_round=1, client_id=0, seed=0))
    assert [pair.reconstruction for pair in card.pairs] == list(range(6))
    assert {pair.private for pair in card.pairs} == {None}
    assert card.score is card.private_sheet is None
    assert card.private_id == card.notice == ""
    for forbidden in (reader.experiment, reader.truth, reader.truth_key, lambda: reader.private_batch((0,))):
        with pytest.raises(HiddenError, match="attacker's view"):
            forbidden()
    assert training_view(reader, settings[0]) == ()


@pytest.mark.parametrize(("num", "channels"), [(1, 1), (5, 3), (40, 1), (0, 1)])
def test_a_sheet_is_lossless(num, channels):
    images = torch.randint(0, 256, (num, channels, 5, 7), dtype=torch.uint8)
    cut = sheet_view(images)
    sheet = torch.from_numpy(numpy.array(Image.open(io.BytesIO(draw_sheet(images)))))
    sheet = sheet.unsqueeze(0) if channels == 1 else sheet.permute(2, 0, 1)
    for index in range(num):
        top, left = index // cut.columns * cut.height, index % cut.columns * cut.width
        assert torch.equal(sheet[:, top : top + 5, left : left + 7], images[index])
    assert torch.equal(
        torch.tensor(Image.open(io.BytesIO(draw_sheet(torch.tensor([[[[float("nan"), 2.0]]]])))).getdata()),
        torch.tensor([0, 255]),
    )


def test_names_lead_to_runs_and_nowhere_else(folders):
    (folders / "runs/link").symlink_to(folders / "defended/study/runs/noisy")
    (folders / "runs/inner").mkdir()
    index = RunIndex(folders / "runs", folders / "defended")
    assert index.find("plain").store.folder.name == "plain"
    assert index.find("study~noisy").store.folder == folders / "defended/study/runs/noisy"
    for name in (
        "..",
        "../runs/plain",
        "",
        ".",
        "plain/..",
        "link",
        "inner",
        "study~..",
        "..~noisy",
        "~noisy",
        "a~b~c",
    ):
        with pytest.raises(UnknownRunError):
            index.find(name)
    assert "link" not in {place.run_id for place in index.places()}
    (folders / "runs/other/attacks/out").symlink_to("/etc")
    with pytest.raises(RecordingError, match="leads out"):
        index.find("other")


def test_other_updates_on_the_same_private_images_are_found(index):
    place, reader = index.find("plain"), reader_of(index)
    label = realistic(reader).label
    key = ResultKey(server_round=1, client_id=0, seed=0)
    found = alike_view(index, place, label, key, sees_truth=True)
    assert {(one.run_id, one.kind, one.server_round) for one in found} == {
        ("plain", "round", 2),
        ("plain", "attack", 1),
        ("noisy", "run", 1),
        ("study~noisy", "run", 1),
    }  # and nothing of `other`, whose clients hold other images
    attacker = alike_view(index, place, label, key, sees_truth=False)
    assert {(one.run_id, one.kind, one.psnr_db) for one in attacker} == {("plain", "round", None)}


def test_leakage_by_round_and_the_tradeoff_are_means_of_the_scores(index):
    reader = reader_of(index)
    setting = realistic(reader)
    rounds = training_view(reader, setting)
    scores = {summary.key: summary.score for summary in reader.summaries(setting)[0]}
    first = [score.mean_psnr_db for key, score in scores.items() if key.server_round == 1]
    assert [entry.server_round for entry in rounds] == [1, 2]
    assert rounds[0].psnr_db.mean == pytest.approx(sum(first) / 3)
    assert rounds[0].accuracy == reader.evaluations()[0].accuracy
    view = tradeoff_view(index, "", sees_truth=True)
    points = {point.runs[0]: point for point in view.points}
    assert set(points) == {"plain", "noisy", "other"}
    assert points["plain"].accuracy.mean == reader.evaluations()[-1].accuracy
    assert points["plain"].realistic
    assert points["noisy"].family == "gaussian_noise"
    for point in view.points:
        beaten = any(
            other.accuracy.mean >= point.accuracy.mean
            and other.psnr_db.mean <= point.psnr_db.mean
            and (other.accuracy.mean, other.psnr_db.mean) != (point.accuracy.mean, point.psnr_db.mean)
            for other in view.points
        )
        assert point.undominated is not beaten
    assert [point.runs for point in tradeoff_view(index, "study", sees_truth=True).points] == [("study~noisy",)]
    assert tradeoff_view(index, "", sees_truth=False).points == ()


def test_the_spectrum_is_that_of_the_update(index):
    reader = reader_of(index, sees_truth=False)
    view = spectrum_view(reader, 1, 0)
    record = reader.run.recording.read_round(1, [0])
    name = next(name for name, tensor in record.global_parameters.items() if tensor.ndim == 2)
    values = torch.linalg.svdvals((record.updates[0].tensors[name] - record.global_parameters[name]).double())
    assert view.values == pytest.approx(values[values > 1e-9][: len(view.values)].tolist(), rel=1e-3)
    assert view.directions == sum(value > view.rounding for value in view.values)
    assert view.stated == 6
    with pytest.raises(UnknownRunError):
        spectrum_view(reader, 9, 0)


def test_a_running_federation_tells_replies_and_time_left(folders):
    run = RunStore(folders / "runs/plain")
    run.write_status(RunStatus(state=RunState.RUNNING))
    run.events_path.write_text("")
    for event in (
        Event(kind=EventKind.FEDERATION_STARTED, total=5),
        Event(kind=EventKind.ROUND_STARTED, server_round=3, total=3),
        Event(kind=EventKind.REPLY_RECEIVED, server_round=3),
        Event(kind=EventKind.REPLY_FAILED, server_round=3, message="client 1: no reply"),
    ):
        append_event(run.events_path, event)
    now = time.time()
    for number, seconds in ((1, 40.0), (2, 10.0)):  # 30 s a round, the last one 10 s ago
        os.utime(run.recording.folder / f"rounds/{number:04d}/round.json", (now - seconds, now - seconds))
    reader = RunReader(run, sees_truth=False)
    assert progress_view(reader).state == "killed"  # nobody holds the lock
    descriptor = os.open(run.folder, os.O_RDONLY)

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    view = progress_view(reader)
    os.close(descriptor)
    assert (view.state, view.rounds_done, view.num_rounds, view.replies, view.asked) == ("running", 2, 5, 2, 3)
    assert view.seconds_left == pytest.approx(3 * 30.0 - 10.0, abs=5.0)
    assert view.warnings == ("round 3: client 1: no reply",)


def entry_of(reader: RunReader, setting, **changes) -> CampaignEntry:
    own = CampaignEntry(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        started=time.time() - 30.0,
        updated=time.time(),
        waiting=("r0009-c00000-s0", "r0009-c00001-s0"),
        finished=1,
        running=(RunningAttack(key="r0009-c00000-s0", step=50, num_steps=100, matching_loss=0.5),),
    )
    return replace(own, **changes)


@pytest.mark.parametrize(
    ("changes", "state"),
    [({}, "running"), ({"pid": 2**22 + 1}, "interrupted"), ({"process_started": 1.0}, "interrupted")],
)
def test_campaigns_run_are_interrupted_or_have_ended(folders, changes, state):
    reader = RunReader(RunStore(folders / "runs/plain"), sees_truth=True)
    setting = realistic(reader)
    FORMAT.write(journal_path(setting.store.folder), asdict(entry_of(reader, setting, **changes)))
    (view,) = campaign_views(reader, [setting])
    assert (view.state, view.total, view.finished) == (state, 3, 1)
    if state == "running":
        # Half of the three attacks in 30 s.
        assert view.seconds_left == pytest.approx(30.0, abs=2.0)
        assert (view.running[0].server_round, view.running[0].clients, view.running[0].step) == (9, (0,), 50)
    else:
        assert view.running == ()
    ended = entry_of(reader, setting, has_ended=True, waiting=("r0001-c00000-s0",), running=())
    FORMAT.write(journal_path(setting.store.folder), asdict(ended))
    assert campaign_views(reader, [setting]) == ()  # all of it is there


def test_a_campaign_keeps_its_journal(tmp_path):
    keys = [ResultKey(server_round=1, client_id=client, seed=0) for client in range(2)]
    told: list[object] = []

    class Observer(CampaignObserver):
        def on_step(self, key, progress):
            told.append(key)

    with journal(tmp_path, keys, Observer()) as observer:
        assert read_journal(tmp_path).waiting == tuple(key.folder_name for key in keys)
        observer.on_step(keys[0], Progress(step=1, num_steps=9, loss=float("nan")))
        observer.on_finished(keys[0])
        observer.on_failed(TaskFailure(key=keys[1], reason="no\nmemory"))
        entry = read_journal(tmp_path)
        assert entry.is_alive
        assert (entry.finished, entry.waiting, entry.failed[0].reason) == (1, (), "no memory")
    assert told == keys[:1]
    assert read_journal(tmp_path).has_ended
    assert not read_journal(tmp_path).is_alive


def test_snapshots_change_no_bit_and_go_when_the_result_is_there(looked_at, tmp_path):
    run = RunStore(looked_at / "runs/plain")
    reconstructions = []
    seen: list[int] = []
    for snapshots in (False, True):
        (task,) = plan_campaign(run, FAST, snapshots=snapshots).tasks
        task = replace(task, results=tmp_path / str(snapshots))
        folder = task.results / task.key.folder_name

        def look(progress, folder=folder):
            if snapshot_path(folder).exists():
                seen.append(read_snapshot(folder).step)

        run_task(task, look)
        assert not snapshot_path(folder).exists()
        reconstructions.append((folder / "reconstruction.safetensors").read_bytes())
    assert reconstructions[0] == reconstructions[1]
    assert seen == [1, 1, 1]  # written after the first step, then not again for two seconds
    with pytest.raises(ConfigError, match="--workers ray"):
        plan_campaign(run, replace(FAST, workers="ray"), snapshots=True)


@pytest.mark.parametrize(
    "name", ["fedavg_leakage", "inverting_gradients", "gradinversion", "feature_span", "dlg", "idlg"]
)
def test_every_iterative_attack_shows_the_images_that_it_ends_with(looked_at, name):

    # The loss that is reported is that before a step; the images are those after it.
    options = {"dlg": {"steps": 2}, "idlg": {"steps": 2, "label_recovery": "automatic"}}.get(name, {"steps": 2})
    if name == "feature_span":
        options = {"steps": 2, "rounds": 0}
    if name == "gradinversion":
        options |= {"group_size": 1}
    (task,) = plan_campaign(
        RunStore(looked_at / "runs/plain"), replace(FAST, name=name, options=options, seeds=(5,))
    ).tasks
    shown: list[torch.Tensor] = []
    attack = make_attack(task.setting)
    found = attack(
        observe(task),
        generator=torch.Generator().manual_seed(0),
        on_step=lambda progress: shown.append(progress.images().clone()),
    )
    assert len(shown) == 2
    assert shown[-1].shape == found.images.shape
    if name not in ("dlg", "idlg"):  # these return the best of what the line search has tried
        assert torch.allclose(shown[-1].clamp(0, 1), found.images, atol=1e-6)


def test_images_never_travel_with_progress():
    sent: list[TaskProgress] = []
    key = ResultKey(server_round=1, client_id=0, seed=0)
    report = StepReporter(key, sent.append)
    report(Progress(step=1, num_steps=1, loss=0.0, images=lambda: torch.zeros(1)))
    assert sent[0].progress.images is None


def test_a_snapshot_is_of_whole_bytes_and_damage_is_told(tmp_path):
    writer = SnapshotWriter(tmp_path, lambda progress: None)
    images = torch.tensor([[[[-1.0, 0.5], [2.0, float("nan")]]]])
    writer(Progress(step=3, num_steps=9, loss=0.25, images=lambda: images))
    found = read_snapshot(tmp_path)
    assert found.images.flatten().tolist() == [0, 128, 255, 0]
    assert (found.step, found.num_steps, found.losses.tolist()) == (3, 9, [0.25])
    snapshot_path(tmp_path).write_bytes(b"half")
    with pytest.raises(RecordingError, match="snapshot"):
        read_snapshot(tmp_path)


def test_files_are_read_again_when_they_change(tmp_path):
    path, cache, reads = tmp_path / "file", FileCache(2), []

    def load() -> str:
        reads.append(1)
        return path.read_text()

    path.write_text("a")
    assert [cache.get("text", path, load) for _ in range(3)] == ["a"] * 3
    path.write_text("bb")
    assert cache.get("text", path, load) == "bb"
    assert len(reads) == 2
    for name in ("x", "y", "z"):
        cache.get(name, path, load)
    cache.get("text", path, load)
    assert len(reads) == 6  # it was forgotten: there is room for two


def test_json_is_strict_and_curves_keep_their_end():
    assert json.loads(json_bytes({"a": float("nan"), "b": (1, 2.123456789), "c": True})) == {
        "a": None,
        "b": [1, 2.12346],
        "c": True,
    }
    curve = thin_curve([float(step) for step in range(1, 1002)])
    assert len(curve) <= 400
    assert (curve[-1].step, curve[-1].loss) == (1001, 1001.0)
    assert thin_curve([]) == ()


def test_a_damaged_result_is_a_card_that_says_so(folders):
    reader = RunReader(RunStore(folders / "runs/plain"), sees_truth=True)
    setting = realistic(reader)
    broken = setting.store.folder / "r0001-c00001-s0/reconstruction.safetensors"
    broken.write_bytes(broken.read_bytes()[:-10])
    cards = round_cards(reader, setting, 1)
    assert [hasattr(card, "problem") for card in cards] == [False, True, False]
    assert "changed after recording" in cards[1].problem
