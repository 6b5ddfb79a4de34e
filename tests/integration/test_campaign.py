"""Campaigns: blind to the truth, resumable, and not stopped by one bad update."""

import shutil
from dataclasses import replace

import pytest
import torch

from attacker.attack_store import AttackStore, ResultKey
from attacker.attack_worker import observe, run_task
from attacker.batch_norm import inferred_statistics
from attacker.campaign import plan_campaign, run_campaign
from attacker.campaign_observer import CampaignObserver
from attacker.local_update import simulate_local_update
from attacker.metrics.features import FeatureExtractor, load_features
from attacker.metrics.iip import POOL_SIZE
from attacker.observation import NotGrantedError, mean_gradient
from attacker.report.collect import collect_content
from attacker.report.page import render
from attacker.results import read_results, result_row, score_results
from attacker.truth import read_truth
from fl_sim.batch_order import batch_order_generator, epoch_order
from fl_sim.config import AttackConfig
from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.run_store import RunStore

FAST = AttackConfig(name="fedavg_leakage", options={"steps": 3})


@pytest.fixture(scope="module")
def recorded(run_tiny) -> RunStore:
    return run_tiny()


@pytest.fixture
def run(recorded, tmp_path) -> RunStore:
    """A fresh copy of a recorded run."""
    shutil.copytree(recorded.folder, tmp_path / "run")
    return RunStore(tmp_path / "run")


@pytest.mark.parametrize("name", ["fedavg_leakage", "inverting_gradients", "gradinversion", "feature_span"])
def test_attacks_are_blind_delete_the_truth_and_attack_again(recorded, tmp_path, name):
    results = []
    for attempt in ("with", "without"):
        run = RunStore(tmp_path / attempt)
        shutil.copytree(recorded.folder, run.folder)
        if attempt == "without":
            shutil.rmtree(run.folder / "truth")
            # Everything else from which the private images could be recomputed goes too.
            for name_of_file in ("experiment.toml", "run.json"):
                (run.folder / name_of_file).unlink()
        plan = plan_campaign(run, replace(FAST, name=name, rounds=(1,), clients=(0,)))
        for task in plan.tasks:
            run_task(task, lambda progress: None)
        store = AttackStore(plan.tasks[0].results)
        results.append((store.folder / plan.tasks[0].key.folder_name / "reconstruction.safetensors").read_bytes())
    assert results[0] == results[1]


def test_other_seeds_see_other_things(run):
    plan = plan_campaign(run, replace(FAST, rounds=(1,), clients=(0,), seeds=(0, 1)))
    for task in plan.tasks:
        run_task(task, lambda progress: None)
    first, second = (AttackStore(task.results).read_result(task.key).images for task in plan.tasks)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_a_campaign_runs_resumes_and_goes_on_past_damage(run):
    path = run.recording.folder / "rounds" / "0001" / "client-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    seen = _Observer()
    failures = run_campaign(plan_campaign(run, FAST), workers=2, observer=seen)
    assert [failure.key for failure in failures] == [ResultKey(server_round=1, client_id=1, seed=0)]
    assert "client-00001.safetensors" in failures[0].reason
    assert len(seen.finished) == 5
    assert seen.steps > 0
    again = plan_campaign(run, FAST)
    assert len(again.finished) == 5
    assert [task.key for task in again.tasks] == [failures[0].key]


def test_a_damaged_result_is_done_again(run):
    plan = plan_campaign(run, replace(FAST, rounds=(1,), clients=(0, 1)))
    for task in plan.tasks:
        run_task(task, lambda progress: None)
    damaged = plan.tasks[1]
    tensors = damaged.results / damaged.key.folder_name / "reconstruction.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    again = plan_campaign(run, replace(FAST, rounds=(1,), clients=(0, 1)))
    assert again.tasks == (damaged,)


def test_other_hyper_parameters_are_another_setting(run):
    plans = [plan_campaign(run, replace(FAST, options={"steps": steps})) for steps in (3, 4)]
    assert plans[0].setting.label != plans[1].setting.label
    assert plans[0].setting.options.keys() > {"steps"}  # defaults are spelled out


def test_granted_batch_counts_are_those_of_the_client_s_own_training(run):
    plan = plan_campaign(run, replace(FAST, threat_model="known_batch_label_counts", rounds=(2,), clients=(1,)))
    batch_counts = torch.tensor(plan.tasks[0].batch_label_counts)
    truth, recipe = read_truth(run.folder), run.experiment().training
    assert batch_counts.sum(dim=0).tolist() == (recipe.epochs * truth.label_counts(1)).tolist()
    # The order behind the counts is the true one: the client's images in this order give the recorded update.
    private, observation = truth.private_batch(1), observe(plan.tasks[0])
    stream = batch_order_generator(run.experiment().seed, 1, 2)
    orders = torch.stack([epoch_order(len(private.labels), recipe.order, stream) for _ in range(recipe.epochs)])
    batches = [batch for order in orders for batch in private.labels[order].split(recipe.batch_size)]
    assert torch.equal(
        torch.stack([torch.bincount(batch, minlength=truth.num_classes) for batch in batches]), batch_counts
    )
    simulated = simulate_local_update(
        observation.model.train(),
        observation.global_parameters,
        observation.global_buffers,
        private.images,
        private.labels,
        recipe,
        order=orders,
    )
    for name, expected in mean_gradient(observation).items():
        torch.testing.assert_close(simulated[name], expected, rtol=1e-3, atol=1e-4)


def test_cohorts_are_attacked_by_their_mean_and_scored_together(run):
    plan = plan_campaign(run, replace(FAST, threat_model="known_label_counts", rounds=(1,), cohort=2))
    truth = read_truth(run.folder)
    assert [task.key.clients for task in plan.tasks] == [(0, 1)]  # the third client is left over
    run_task(plan.tasks[0], lambda progress: None)
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    assert score_results(run, truth, threshold_db=20.0) == 1
    (result,) = read_results(run)
    assert result.key == plan.tasks[0].key
    assert result.score.num_images == sum(len(truth.private_batch(client).labels) for client in (0, 1))
    assert result_row(result)["other_clients"] == [1]
    assert "clients 0, 1 (mean of their updates)" in render(collect_content(run, truth, ()))
    with pytest.raises(ConfigError, match="in groups of 4; stored rounds"):
        plan_campaign(run, replace(FAST, cohort=4))


def test_granted_label_counts_come_from_the_truth_and_are_marked(run):
    plan = plan_campaign(run, replace(FAST, threat_model="known_label_counts", rounds=(1,), clients=(2,)))
    truth = read_truth(run.folder)
    assert plan.tasks[0].label_counts == (tuple(truth.label_counts(2).tolist()),)
    run_task(plan.tasks[0], lambda progress: None)
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    assert score_results(run, truth, threshold_db=20.0) == 1
    row = result_row(read_results(run)[0])
    assert row["label_count_error"] == 0
    assert not row["realistic"]
    assert "label_counts" in row["granted"]


NORMALISED_MODEL = """
from torch import nn

from fl_sim.models import Normalisation


def normalised(*, dataset, generator):
    '''A small network with BatchNorm.'''
    first, second = nn.Conv2d(1, 4, 3, stride=4), nn.Linear(196, dataset.num_classes)
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=0.1, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(
        Normalisation(dataset.mean, dataset.std), first, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), second
    )
"""


def test_granted_batch_statistics_are_those_that_the_clients_layers_saw(run_tiny, tmp_path, monkeypatch):
    (tmp_path / "normalised_model.py").write_text(NORMALISED_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    run = run_tiny(
        "model={name='normalised_model:normalised'}",
        "federation.algorithm=fedsgd",
        "federation.num_rounds=1",
        "training={learning_rate=0.1}",
    )
    config = AttackConfig(
        name="gradinversion",
        options={"steps": 1, "group_size": 1, "batch_norm": "exact"},
        threat_model="known_batch_statistics",
        clients=(1,),
    )
    (task,) = plan_campaign(run, config).tasks
    assert task.label_counts is None
    observation = observe(task)
    granted = observation.require_batch_statistics()
    inferred = inferred_statistics(
        observation.model, observation.global_buffers, observation.require_client_buffers(), num_steps=1
    )
    assert granted.keys() == inferred.keys()
    assert set(granted) == {"2"}
    for mine, solved in zip(granted["2"], inferred["2"], strict=True):
        torch.testing.assert_close(mine, solved, rtol=1e-4, atol=1e-4)
    run_task(task, lambda progress: None)
    assert AttackStore(task.results).read_result(task.key).images.shape == (6, 1, 28, 28)
    (honest,) = plan_campaign(run, replace(config, threat_model="honest_but_curious")).tasks
    assert honest.batch_statistics is None
    with pytest.raises(NotGrantedError, match="batch_statistics"):
        run_task(honest, lambda progress: None)


def test_identifiability_is_looked_up_among_all_private_images_and_others(run):
    plan = plan_campaign(run, replace(FAST, rounds=(1,), clients=(0,)))
    run_task(plan.tasks[0], lambda progress: None)
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    truth = read_truth(run.folder)
    private = torch.cat([truth.private_batch(client_id).images for client_id in range(3)])
    everybody = truth.identification_pool(len(private))
    assert sorted(map(hash, map(tuple, everybody.flatten(1).tolist()))) == sorted(
        map(hash, map(tuple, private.flatten(1).tolist()))
    )
    assert torch.equal(truth.identification_pool(40)[: len(private)], everybody)
    extractor = load_features("pixels")
    assert isinstance(extractor, FeatureExtractor)
    assert score_results(run, truth, threshold_db=20.0, extractor=extractor) == 1
    row = result_row(read_results(run)[0])
    assert (row["iip_extractor"], row["iip_pool_size"]) == ("pixels", POOL_SIZE)
    assert 0 <= row["iip"] <= 1
    assert row["baseline_mean_image_iip"] is not None


def test_a_recording_needs_no_file_of_weights(run_tiny, recorded, tmp_path):
    path = tmp_path / "weights.pth"
    trained = recorded.recording.read_round(2, []).global_parameters
    torch.save(dict(trained), path)
    run = run_tiny("seed=5", f"model.options={{hidden=[16], weights='{path}'}}")
    path.unlink()
    first = run.recording.read_round(1, []).global_parameters
    assert all(torch.equal(first[name], tensor) for name, tensor in trained.items())
    run_task(plan_campaign(run, replace(FAST, rounds=(1,), clients=(0,))).tasks[0], lambda progress: None)


def test_without_the_truth_nothing_is_granted_and_nothing_scored(run):
    shutil.rmtree(run.folder / "truth")
    with pytest.raises(MissingDataError, match="without the truth"):
        read_truth(run.folder)
    with pytest.raises(MissingDataError):
        plan_campaign(run, replace(FAST, threat_model="known_label_counts"))
    with pytest.raises(MissingDataError):
        plan_campaign(run, replace(FAST, threat_model="known_batch_statistics"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": (7,)}, r"rounds: 7 is not in the recording; recorded: \[1, 2\]"),
        ({"clients": (9,)}, "no stored update matches rounds all and clients \\[9\\]"),
        ({"name": "magic"}, "unknown attack"),
        ({"options": {"stepz": 3}}, "attack.options: unknown key 'stepz'"),
    ],
)
def test_impossible_plans_are_refused(run, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_campaign(run, replace(FAST, **changes))


class _Observer(CampaignObserver):
    def __init__(self):
        self.finished, self.steps = [], 0

    def on_step(self, key, progress):
        self.steps += 1

    def on_finished(self, key):
        self.finished.append(key)
