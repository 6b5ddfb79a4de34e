"""SecAgg+: the sum is right, a masked vector says nothing, and the recording holds what the server saw."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from scipy.stats import chi2
from torch import nn

from attacker.attack_store import AttackStore
from attacker.attack_worker import build_model, observe, run_task
from attacker.baselines import trivial_baselines
from attacker.campaign import plan_campaign
from attacker.masked_vector import read_as_update
from attacker.matching import match
from attacker.metrics.psnr import psnr_db
from attacker.recipes import ATTACKS
from attacker.report.collect import collect_content
from attacker.report.page import render
from attacker.results import read_results, score_results
from attacker.threat_models import THREAT_MODELS
from attacker.truth import read_truth
from fl_sim.config import AttackConfig, read_experiment
from fl_sim.errors import ConfigError, RecordingError
from fl_sim.events import EventKind, read_events
from fl_sim.parameters import flatten, weighted_mean
from fl_sim.run_store import RunState, create_run
from fl_sim.runtime import run_federation
from fl_sim.seeds import generator

SECURE = "federation.secure_aggregation={}"
FEDSGD = ("federation.algorithm=fedsgd", "training={learning_rate=0.5}")
UNEQUAL = (
    "data.num_clients=30",
    "data.examples_per_client=30",
    "data.partition=dirichlet",
    "data.partition_options={alpha=0.1}",
    "federation.clients_per_round=5",
    "federation.num_rounds=1",
)
CONFIGS = "secaggplus_configs"


def quantisation_error(sizes, *, quantization_range=2**22, clipping_range=8.0, max_weight=None):
    """The largest error of a weighted mean whose parts are rounded to the next step."""
    step = 2 * clipping_range / quantization_range
    return len(sizes) * step * (max_weight or max(sizes)) / sum(sizes) + 1e-6


@pytest.fixture(scope="module")
def secure_run(run_tiny):
    return run_tiny(SECURE)


@pytest.mark.parametrize("changes", [(), FEDSGD], ids=["fedavg", "fedsgd"])
def test_the_sum_is_plain_averaging_within_quantisation(run_tiny, changes):
    plain = run_tiny(*UNEQUAL, *changes)
    secure = run_tiny(*UNEQUAL, *changes, SECURE)
    record, aggregate = plain.recording.read_round(1), secure.recording.read_round(1).aggregate
    sizes = [update.num_examples for update in record.updates]
    assert len(set(sizes)) > 1
    assert list(aggregate.num_examples.items()) == [(u.client_id, u.num_examples) for u in record.updates]
    mean = flatten(weighted_mean([update.tensors for update in record.updates], sizes))
    error = quantisation_error(sizes, max_weight=30)
    assert (flatten(aggregate.tensors) - mean).abs().max() < error
    assert (_final(secure) - _final(plain)).abs().max() < error


def test_coarse_quantisation_shows(run_tiny):
    plain = run_tiny("federation.num_rounds=1")
    coarse = run_tiny("federation.num_rounds=1", "federation.secure_aggregation={quantization_range=4096}")
    difference = (_final(coarse) - _final(plain)).abs().max()
    assert quantisation_error([6] * 3) < difference < quantisation_error([6] * 3, quantization_range=4096)


def with_batchnorm(*, dataset, generator):
    """A network whose reply holds statistics and a counter without dimensions."""
    torch.manual_seed(0)
    height, width = dataset.image_shape[1:]
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def test_buffers_travel_too_and_counters_stay_whole(run_tiny):
    changes = ("model={name='test_secure_aggregation:with_batchnorm'}", "training.batch_size=3")
    wide = "federation.secure_aggregation={clipping_range=64.0}"
    plain, narrow, secure = run_tiny(*changes), run_tiny(*changes, SECURE), run_tiny(*changes, wide)
    assert any("tensor '2.running_var' holds" in warning for warning in _warnings(narrow))  # variances pass 8
    assert not _warnings(secure)
    buffers, expected = secure.recording.read_final()[1], plain.recording.read_final()[1]
    counter = buffers.pop("2.num_batches_tracked")
    assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 8)  # 2 rounds, E = 2, 2 batches
    assert buffers.keys() == {"2.running_mean", "2.running_var"}
    for name, buffer in buffers.items():
        assert torch.allclose(buffer, expected[name], atol=1e-3), name
    assert secure.recording.read_masked_vector(1, 0).keys() >= {f"buffers/{name}" for name in expected}


def test_same_seed_same_model_whatever_the_masks(run_tiny, secure_run):
    def in_another_process(client_app):
        def answer(message: Message, context) -> Message:
            np.random.seed()  # whatever the process-wide generator was before
            return client_app(message, context)

        return answer

    again = run_tiny(SECURE, wrap=in_another_process)
    assert torch.equal(_final(again), _final(secure_run))
    first, second = (_vector(run, 0) for run in (again, secure_run))
    assert (first == second).double().mean() < 0.01


def test_the_recording_holds_what_the_server_saw_and_no_single_update(run_tiny, secure_run):
    plain, recording = run_tiny().recording, secure_run.recording
    record = recording.read_round(1)
    assert record.updates == ()
    assert recording.kept_clients(1) == ()
    assert recording.aggregated_clients(1) == record.aggregate.clients == (0, 1, 2)
    assert not record.failures
    for masked, update in zip(record.masked, plain.read_round(1).updates, strict=True):
        assert masked.num_examples == update.num_examples
        assert masked.metrics == update.metrics  # in clear, as every metric is
    files = sorted(path.name for path in (recording.folder / "rounds" / "0001").iterdir())
    assert files == [
        "aggregate.safetensors",
        "global.safetensors",
        "masked-00000.safetensors",
        "masked-00001.safetensors",
        "masked-00002.safetensors",
        "round.json",
    ]
    vector = recording.read_masked_vector(1, 0)
    assert {tensor.dtype for tensor in vector.values()} == {torch.uint32}
    assert [name.partition("/")[2] for name in vector if name != "weight"] == list(record.global_parameters)
    assert recording.read_manifest().secure_aggregation.max_weight == 6  # filled in
    with pytest.raises(RecordingError, match=r"client 0 of round 1 is not stored.*secure aggregation hid"):
        recording.read_round(1, [0])
    with pytest.raises(RecordingError, match=r"no masked vector of client 7 in round 1 .*stored: \[0, 1, 2\]"):
        recording.read_masked_vector(1, 7)


def test_damage_to_a_masked_vector_or_the_mean_is_found(run_tiny):
    recording = run_tiny(SECURE, "federation.num_rounds=1").recording
    for name, read in (
        ("masked-00001", lambda: recording.read_masked_vector(1, 1)),
        ("aggregate", lambda: recording.read_round(1)),
    ):
        path = recording.folder / "rounds" / "0001" / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(RecordingError, match=rf"{name}\.safetensors.*changed"):
            read()


def test_a_selection_of_the_recording_is_kept(run_tiny):
    recording = run_tiny(SECURE, "recording.rounds=[2]", "recording.clients=[1]").recording
    assert recording.aggregated_clients(1) == ()
    assert [reply.client_id for reply in recording.read_round(2).masked] == [0, 1, 2]
    assert recording.aggregated_clients(2) == (0, 1, 2)
    recording.read_masked_vector(2, 1)
    with pytest.raises(RecordingError, match="no masked vector of client 0"):
        recording.read_masked_vector(2, 0)


def test_a_masked_vector_is_uniform_and_unrelated_to_the_update(run_tiny, secure_run):
    update = flatten(run_tiny().recording.read_round(1).updates[0].tensors)
    masked = _vector(secure_run, 0)[1:]
    num_bins = 256
    for shift in (24, 0):  # the highest and the lowest bits
        counts = torch.bincount((masked >> shift) % num_bins, minlength=num_bins)
        expected = len(masked) / num_bins
        statistic = ((counts - expected).square() / expected).sum().item()
        assert 1e-6 < chi2.sf(statistic, num_bins - 1) < 1 - 1e-6
    correlation = torch.corrcoef(torch.stack([masked.double(), update.double()]))[0, 1]
    assert abs(correlation) < 6 / math.sqrt(len(masked))


@pytest.mark.parametrize("stage", ["setup", "share_keys", "collect_masked_vectors", "unmask"])
def test_a_client_may_drop_out_at_any_stage(run_tiny, stage):
    run = run_tiny(SECURE, wrap=lambda client_app: _dropping_out(client_app, {1}, stage))
    record = run.recording.read_round(1)
    assert [(failure.client_id, failure.stage) for failure in record.failures] == [(1, stage)]
    assert "no battery" in record.failures[0].reason
    # Who drops out after sending the masked vector is in the sum all the same.
    clients = (0, 1, 2) if stage == "unmask" else (0, 2)
    assert record.aggregate.clients == clients
    updates = [u for u in run_tiny().recording.read_round(1).updates if u.client_id in clients]
    mean = flatten(weighted_mean([update.tensors for update in updates], [1.0] * len(updates)))
    assert (flatten(record.aggregate.tensors) - mean).abs().max() < quantisation_error([6] * len(updates))
    assert run.recording.aggregated_clients(2) == (0, 1, 2)  # it comes back in the next round


def test_dropouts_at_different_stages_in_a_larger_round(run_tiny):
    def wrap(client_app):
        for client_id, stage in enumerate(("setup", "share_keys", "collect_masked_vectors", "unmask")):
            client_app = _dropping_out(client_app, {client_id}, stage)
        return client_app

    changes = ("data.num_clients=8", "federation.num_rounds=1")
    options = "federation.secure_aggregation={num_shares=7, reconstruction_threshold=3}"
    record = run_tiny(*changes, options, wrap=wrap).recording.read_round(1)
    stages = {failure.client_id: failure.stage for failure in record.failures}
    assert stages == {0: "setup", 1: "share_keys", 2: "collect_masked_vectors", 3: "unmask"}
    updates = run_tiny(*changes).recording.read_round(1).updates[3:]
    mean = flatten(weighted_mean([update.tensors for update in updates], [1.0] * 5))
    assert record.aggregate.clients == (3, 4, 5, 6, 7)
    assert (flatten(record.aggregate.tensors) - mean).abs().max() < quantisation_error([6] * 5)


def test_too_few_to_unmask_leave_the_model_as_it_was(run_tiny):
    run = run_tiny(SECURE, wrap=lambda client_app: _dropping_out(client_app, {0, 1}, "collect_masked_vectors"))
    record, following = run.recording.read_round(1), run.recording.read_round(2)
    assert record.aggregate is None
    assert [reply.client_id for reply in record.masked] == [2]
    assert len(record.failures) == 2
    assert torch.equal(flatten(record.global_parameters), flatten(following.global_parameters))
    assert following.aggregate.clients == (0, 1, 2)
    assert any("too few clients stayed" in warning for warning in _warnings(run))
    assert run.status().state is RunState.FINISHED


def test_a_masked_vector_of_the_wrong_form_is_left_out_of_the_sum(run_tiny):
    def wrap(client_app):
        def answer(message: Message, context) -> Message:
            stage = _stage(message)  # the protocol takes it out of the message
            reply = client_app(message, context)
            if stage == "collect_masked_vectors" and context.node_config["partition-id"] == 1:
                parts = reply.content[CONFIGS]["masked_params"]
                reply.content[CONFIGS] = ConfigRecord({"masked_params": parts[:-1]})
            return reply

        return answer

    record = run_tiny(SECURE, "federation.num_rounds=1", wrap=wrap).recording.read_round(1)
    assert record.aggregate.clients == (0, 2)
    assert "masked vector cannot be used: expected the shapes" in record.failures[0].reason


def test_values_beyond_the_range_are_reported_and_clipped(run_tiny):
    changes = ("federation.num_rounds=1",)
    run = run_tiny(*changes, "federation.secure_aggregation={clipping_range=0.3}")
    plain = run_tiny(*changes).recording.read_round(1)
    record = run.recording.read_round(1)
    for masked, update in zip(record.masked, plain.updates, strict=True):
        reported = {k.removeprefix("beyond-range/"): v for k, v in masked.metrics.items() if "beyond-range" in k}
        true = {name: tensor.abs().max().item() for name, tensor in update.tensors.items()}
        assert {name: abs(value) for name, value in reported.items()} == pytest.approx(
            {name: value for name, value in true.items() if value > 0.3}
        )
        assert reported
        assert any(f"client {masked.client_id}: tensor '{next(iter(reported))}' holds" in w for w in _warnings(run))
    clipped = sum(flatten(update.tensors).clamp(-0.3, 0.3) for update in plain.updates) / 3
    assert (flatten(record.aggregate.tensors) - clipped).abs().max() < quantisation_error([6] * 3)
    assert not _warnings(run_tiny(*changes, SECURE))


def test_the_range_counts_for_weighted_values(run_tiny):
    # Twice the room for weights: a value may be twice as large before it is clipped.
    run = run_tiny("federation.num_rounds=1", "federation.secure_aggregation={clipping_range=0.15, max_weight=12}")
    plain = run_tiny("federation.num_rounds=1").recording.read_round(1)
    limit = run.recording.read_manifest().secure_aggregation.range_of_values(6)
    clipped = sum(flatten(update.tensors).clamp(-limit, limit) for update in plain.updates) / 3
    assert limit == pytest.approx(0.3)
    assert (flatten(run.recording.read_round(1).aggregate.tensors) - clipped).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("federation.secure_aggregation={max_weight=5}", "num_examples must be at most max_weight = 5, got 6"),
        ("training.learning_rate=1e30", "not finite"),
    ],
)
def test_what_cannot_be_masked_is_not_sent(run_tiny, change, reason):
    run = run_tiny("federation.num_rounds=1", SECURE, change, fails="no round changed the global model")
    record = run.recording.read_round(1)
    assert record.masked == ()
    assert [reason in failure.reason for failure in record.failures] == [True] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([SECURE, "federation.central_privacy={clip_norm=1.0, noise_multiplier=1.0}"], "leave out one of the two"),
        ([SECURE, "data.num_clients=1"], "needs 2 to 1024 clients in a round"),
        ([SECURE, "data.num_clients=2000"], "needs 2 to 1024 clients in a round"),
        (["federation.secure_aggregation={num_shares=4}"], "num_shares must be an odd number >= 3"),
        (["federation.secure_aggregation={num_shares=3, reconstruction_threshold=3}"], "below num_shares = 3, got 3"),
        (["federation.secure_aggregation={reconstruction_threshold=5}"], "must be <= the 4 clients of a round, got 5"),
        (["federation.secure_aggregation={modulus_range=1000}"], "power of two above quantization_range"),
        (["federation.secure_aggregation={shares=3}"], "shares: unknown key"),
        ([SECURE, "attack.clients=[0, 1]"], r"attack.clients must be 'all' .* got \(0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(None, changes)


def test_the_attack_takes_the_mean_of_all_by_itself(run_tiny):
    run = run_tiny(SECURE)
    config = AttackConfig(name="fedavg_leakage", options={"steps": 3}, threat_model="known_label_counts")
    plan = plan_campaign(run, config)
    assert [(task.key.server_round, task.key.clients) for task in plan.tasks] == [(1, (0, 1, 2)), (2, (0, 1, 2))]
    observation, plain = observe(plan.tasks[0]), run_tiny()
    assert observation.knowledge.cohort == (6, 6, 6)
    assert observation.knowledge.client_buffers is None
    cohort = observe(plan_campaign(plain, replace(config, cohort=3)).tasks[0])
    for name, delta in observation.delta.items():
        assert (delta - cohort.delta[name]).abs().max() < quantisation_error([6] * 3)
    for change in ({"clients": (0, 1)}, {"cohort": 2}):
        with pytest.raises(ConfigError, match=r"securely aggregated over clients \[0, 1, 2\]"):
            plan_campaign(run, replace(config, **change))
    with pytest.raises(ValueError, match="'known_batch_label_counts' is for single clients"):
        run_task(plan_campaign(run, replace(config, threat_model="known_batch_label_counts")).tasks[0], print)


@pytest.mark.parametrize(
    ("num_clients", "threat_model"), [(2, "known_label_counts"), (4, "honest_but_curious"), (8, "known_label_counts")]
)
def test_the_optimisation_attack_runs_on_the_sum(run_tiny, num_clients, threat_model):
    run = run_tiny(SECURE, f"data.num_clients={num_clients}", "data.examples_per_client=2", "federation.num_rounds=1")
    plan = plan_campaign(run, AttackConfig(name="fedavg_leakage", options={"steps": 2}, threat_model=threat_model))
    run_task(plan.tasks[0], lambda progress: None)
    found = AttackStore(plan.tasks[0].results).read_result(plan.tasks[0].key)
    assert found.images.shape == (2 * num_clients, 1, 28, 28)
    if threat_model == "known_label_counts":
        private = read_truth(run.folder).private_batch(*range(num_clients))
        assert found.labels.reshape(num_clients, 2).sort().values.tolist() == (
            private.labels.reshape(num_clients, 2).sort().values.tolist()
        )


TWO_IMAGES = (
    *FEDSGD,
    "data.num_clients=2",
    "data.examples_per_client=1",
    "model.options={hidden=[128]}",
    "federation.num_rounds=1",
)
CLOSED_FORM = AttackConfig(name="analytic", threat_model="known_label_counts")


def test_the_sum_of_two_clients_gives_their_images_away(run_tiny):
    run = run_tiny(*TWO_IMAGES, SECURE)
    plan = plan_campaign(run, CLOSED_FORM)
    run_task(plan.tasks[0], lambda progress: None)
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    score_results(run, read_truth(run.folder), threshold_db=20.0)
    (result,) = read_results(run)
    assert result.key.clients == (0, 1)
    assert result.score.num_recovered == 2
    page = render(collect_content(run, read_truth(run.folder), ()))
    assert "mean update of 2 clients" in page


def test_an_attack_on_a_masked_vector_is_no_better_than_guessing(run_tiny):
    secure, plain = run_tiny(*TWO_IMAGES, SECURE), run_tiny(*TWO_IMAGES)
    truth, manifest = read_truth(secure.folder), secure.recording.read_manifest()
    private = truth.private_batch(0)
    (guess, _) = trivial_baselines(private.images, truth.pool(0), threshold_db=20.0, generator=generator(0, "test"))

    def leaked(record, update) -> float:
        observation = THREAT_MODELS["known_label_counts"].observe(
            model=build_model(manifest),
            dataset=manifest.dataset,
            record=record,
            update=update,
            local_training=manifest.local_training,
            label_counts=truth.label_counts(0),
        )
        found = ATTACKS["analytic"]()(observation, generator=generator(0, "attack")).images
        return psnr_db(found[match(private.images, found)], private.images).mean().item()

    record = secure.recording.read_round(1)
    vector = secure.recording.read_masked_vector(1, 0)
    masked = read_as_update(record.masked[0], vector, options=manifest.secure_aggregation, algorithm=manifest.algorithm)
    assert leaked(record, masked) < guess.mean_psnr_db
    # The same attack on the same client's update in the open finds the image: it is the mask that protects.
    open_record = plain.recording.read_round(1)
    assert leaked(open_record, open_record.updates[0]) > 60


def test_without_a_mask_the_reading_is_the_update(run_tiny):
    secure = run_tiny(*TWO_IMAGES, SECURE)
    options, record = secure.recording.read_manifest().secure_aggregation, secure.recording.read_round(1)
    values = run_tiny(*TWO_IMAGES).recording.read_round(1).updates[0].tensors
    steps = options.quantization_range
    vector = {
        f"parameters/{name}": ((tensor.double() / 8 + 1) / 2 * steps).round().to(torch.uint32)
        for name, tensor in values.items()
    }
    read = read_as_update(record.masked[0], vector, options=options, algorithm=record.aggregate.algorithm)
    assert (flatten(read.tensors) - flatten(values)).abs().max() < 8.1 / steps


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_ray_and_one_process_give_the_same_bits_under_secure_aggregation(tiny, run_tiny, tmp_path):
    changes = ["data.num_clients=5", "federation.clients_per_round=3", SECURE]
    on_ray = create_run(tiny(*changes), tmp_path)
    events = list(run_federation(on_ray, engine="ray", client_app="clients.client_app:build_client_app"))
    in_process = run_tiny(*changes)
    assert events[-1].kind is EventKind.FEDERATION_FINISHED
    for server_round in (1, 2):
        ours, theirs = on_ray.recording.read_round(server_round), in_process.recording.read_round(server_round)
        assert ours.masked == theirs.masked
        assert torch.equal(flatten(ours.aggregate.tensors), flatten(theirs.aggregate.tensors))
    assert torch.equal(_final(on_ray), _final(in_process))


def _stage(message: Message) -> str | None:
    return message.content[CONFIGS]["stage"] if message.metadata.message_type == "train" else None


def _dropping_out(client_app, clients, stage):
    """In the first round, some clients fail at one stage."""
    failed = set()

    def answer(message: Message, context) -> Message:
        client_id = context.node_config["partition-id"]
        if _stage(message) == stage and client_id in clients - failed:
            failed.add(client_id)
            raise RuntimeError("no battery")
        return client_app(message, context)

    return answer


def _vector(run, client_id):
    vector = run.recording.read_masked_vector(1, client_id)
    return torch.cat([tensor.long().reshape(-1) for tensor in vector.values()])


def _warnings(run):
    return [event.message for event in read_events(run.events_path) if event.kind is EventKind.WARNING]


def _final(run):
    return flatten(run.recording.read_final()[0])
