"""The federation, in one process: what is averaged, what is recorded, and what bad clients can do."""

import re

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fl_sim.events import EventKind, read_events
from fl_sim.parameters import flatten, scale
from fl_sim.run_store import RunState


def test_the_next_global_model_is_the_weighted_average(run_tiny):
    run = run_tiny("data.examples_per_client=40", "data.partition=dirichlet", "data.partition_options={alpha=1.0}")
    record, following = run.recording.read_round(1), run.recording.read_round(2)
    total = sum(update.num_examples for update in record.updates)
    average = sum(flatten(scale(update.tensors, update.num_examples / total)) for update in record.updates)
    assert torch.allclose(flatten(following.global_parameters), average, atol=1e-6)
    assert len(record.updates) == 3


def test_fedsgd_steps_against_the_average_gradient(run_tiny):
    run = run_tiny("federation.algorithm=fedsgd", "training={learning_rate=0.5}")
    record, following = run.recording.read_round(1), run.recording.read_round(2)
    gradient = sum(flatten(update.tensors) for update in record.updates) / 3  # all clients hold six images
    expected = flatten(record.global_parameters) - 0.5 * gradient
    assert torch.allclose(flatten(following.global_parameters), expected, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
def test_batchnorm_statistics_travel_and_are_averaged_in_their_own_types(run_tiny, algorithm):
    run = run_tiny(
        "model={name='resnet18', options={stem='cifar'}}",
        "data.options={size=8}",
        "data.num_clients=2",
        f"federation.algorithm={algorithm}",
        "training={learning_rate=0.01}",
    )
    record, following = run.recording.read_round(1), run.recording.read_round(2)
    first, second = record.updates
    assert "num_batches_tracked" not in "".join(record.global_parameters)
    for name, buffer in following.global_buffers.items():
        expected = (first.buffers[name].double() + second.buffers[name].double()) / 2
        assert torch.allclose(buffer.double(), expected, rtol=1e-5), name
        assert buffer.dtype == record.global_buffers[name].dtype
    counters = [buffer for name, buffer in following.global_buffers.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20
    assert all(counter.dtype == torch.int64 and counter.item() == 1 for counter in counters)


def test_same_seed_same_model_other_seed_another(run_tiny):
    first, second, other = run_tiny(), run_tiny(), run_tiny("seed=1")
    assert torch.equal(_final(first), _final(second))
    assert not torch.equal(_final(first), _final(other))


def test_training_learns(run_tiny):
    run = run_tiny("data.examples_per_client=200", "federation.num_rounds=3", "training.epochs=5")
    evaluations = run.evaluations()
    assert [evaluation.server_round for evaluation in evaluations] == [0, 1, 2, 3]
    assert evaluations[-1].accuracy > evaluations[0].accuracy + 0.3
    assert evaluations[-1].loss < evaluations[0].loss


def test_clients_are_drawn_by_id_from_the_seed(run_tiny):
    def drawn(seed: int) -> list[list[int]]:
        run = run_tiny(
            "data.num_clients=8", "federation.clients_per_round=3", f"seed={seed}", "federation.num_rounds=4"
        )
        return [list(run.recording.kept_clients(server_round)) for server_round in run.recording.rounds()]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(len(clients) == 3 and clients == sorted(clients) for clients in drawn(0))
    assert len({tuple(clients) for clients in drawn(0)}) > 1


def test_a_selection_is_kept_and_the_rest_counted(run_tiny):
    run = run_tiny("recording.rounds=[2]", "recording.clients=[0, 2]")
    assert run.recording.kept_clients(1) == ()
    assert run.recording.kept_clients(2) == (0, 2)


def test_rounds_are_handed_over_while_training_goes_on(run_tiny):
    seen = []
    run = run_tiny(on_round=lambda record: seen.append((record.server_round, len(record.updates))))
    assert seen == [(1, 3), (2, 3)]
    kinds = [event.kind for event in read_events(run.events_path)]
    assert kinds.count(EventKind.REPLY_RECEIVED) == 2 * 3
    assert kinds[-1] is EventKind.FEDERATION_FINISHED
    assert run.status().state is RunState.FINISHED


@pytest.mark.parametrize("strength_zero", ["defenses=[{name='gaussian_noise', options={stddev=0.0}}]"])
def test_a_defense_of_strength_zero_is_none(run_tiny, strength_zero):
    assert torch.equal(_final(run_tiny()), _final(run_tiny(strength_zero)))


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
def test_a_defense_acts_on_the_update_and_not_on_the_weights(run_tiny, algorithm):
    changes = ["defenses=[{name='clipping', options={clip_norm=0.01}}]", f"federation.algorithm={algorithm}"]
    if algorithm == "fedsgd":
        changes.append("training={learning_rate=1.0}")
    record = run_tiny(*changes).recording.read_round(1)
    for update in record.updates:
        norm = torch.linalg.vector_norm(flatten(update.delta(record.global_parameters, 1.0))).item()
        assert norm == pytest.approx(0.01, rel=1e-3)


def _raises(reply):
    raise ValueError("no data today")


def _nan(reply):
    return _changed(reply, lambda name, array: array * float("nan"))


def _wrong_shape(reply):
    return _changed(reply, lambda name, array: array.reshape(1, *array.shape))


def _wrong_dtype(reply):
    return _changed(reply, lambda name, array: array.astype("float64"))


def _wrong_names(reply):
    arrays = reply.content["arrays"]
    reply.content["arrays"] = ArrayRecord({f"x.{name}": array for name, array in arrays.items()})
    return reply


def _no_examples(reply):
    reply.content["metrics"] = MetricRecord({"num-examples": 0})
    return reply


def _two_records(reply):
    reply.content["more"] = ArrayRecord()
    return reply


@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        (_raises, "no data today"),
        (_nan, "not finite"),
        (_wrong_shape, r"expected .* got \(1, "),
        (_wrong_dtype, "float64"),
        (_wrong_names, "expected the tensors of the model"),
        (_no_examples, "num-examples must be a whole number >= 1, got 0"),
        (_two_records, "expected one ArrayRecord"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_bad_client_is_a_recorded_failure_and_the_round_goes_on(run_tiny, sabotage, reason):
    run = run_tiny(wrap=lambda client_app: _sabotaged(client_app, client_id=1, sabotage=sabotage))
    record = run.recording.read_round(1)
    assert [update.client_id for update in record.updates] == [0, 2]
    assert [failure.client_id for failure in record.failures] == [1]
    assert re.search(reason, record.failures[0].reason)
    average = sum(flatten(update.tensors) for update in record.updates) / 2
    assert torch.allclose(flatten(run.recording.read_round(2).global_parameters), average, atol=1e-6)


def test_a_round_without_usable_replies_leaves_the_model_as_it_was(run_tiny):
    def all_fail_in_round_1(client_app):
        def answer(message, context):
            reply = client_app(message, context)
            is_first = message.metadata.message_type == "train" and message.content["config"]["server-round"] == 1
            return _raises(reply) if is_first else reply

        return answer

    run = run_tiny(wrap=all_fail_in_round_1)
    first, second = run.recording.read_round(1), run.recording.read_round(2)
    assert len(first.failures) == 3
    assert torch.equal(flatten(first.global_parameters), flatten(second.global_parameters))
    assert run.status().state is RunState.FINISHED


def test_a_diverging_model_is_reported_and_the_run_ends_well(run_tiny):
    # One client's gigantic but finite weights overflow in the next forward pass: nobody's reply is usable any more.
    run = run_tiny("training.learning_rate=1e30", "training.epochs=1", "training.batch_size=6")
    assert run.status().state is RunState.FINISHED
    assert run.evaluations()[-1].loss is None
    assert all("not finite" in failure.reason for failure in run.recording.read_failures(2))


def test_a_failing_server_leaves_the_reason(run_tiny, tiny, tmp_path):
    def fail(record):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_tiny(on_round=fail)


def _sabotaged(client_app, *, client_id, sabotage):
    def answer(message: Message, context) -> Message:
        reply = client_app(message, context)
        is_victim = context.node_config["partition-id"] == client_id
        return sabotage(reply) if is_victim and message.metadata.message_type == "train" else reply

    return answer


def _changed(reply, change):
    arrays = reply.content["arrays"]
    changed = {name: torch.from_numpy(change(name, array.numpy())) for name, array in arrays.items()}
    reply.content = RecordDict({"arrays": ArrayRecord(changed), "metrics": reply.content["metrics"]})
    return reply


def _final(run):
    parameters, buffers = run.recording.read_final()
    return flatten({**parameters, **buffers})


def _metrics(**metrics):
    def change(reply):
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    return change


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [
        ({"num-examples": 6}, {}),
        ({"num-examples": 6, "train-loss": float("nan"), "x": float("inf")}, {}),
        ({"num-examples": 6, "of its own": 1.5}, {"of its own": 1.5}),
        ({"num-examples": 6, "train-loss": [1.0, 2.0]}, {}),
    ],
    ids=["none", "not-finite", "other", "list"],
)
def test_other_numbers_of_one_client_do_not_stop_the_round(run_tiny, metrics, kept):
    run = run_tiny(wrap=lambda client_app: _sabotaged(client_app, client_id=1, sabotage=_metrics(**metrics)))
    assert run.status().state is RunState.FINISHED
    assert run.recording.read_round(1).updates[1].metrics == kept
    assert torch.equal(_final(run), _final(run_tiny()))


@pytest.mark.parametrize("number", [-1, 6.0, [6]])
def test_a_number_of_examples_must_be_a_whole_number(run_tiny, number):
    sabotage = _metrics(**{"num-examples": number})
    record = run_tiny(wrap=lambda app: _sabotaged(app, client_id=1, sabotage=sabotage)).recording.read_round(1)
    assert [failure.client_id for failure in record.failures] == [1]
    assert "num-examples must be a whole number" in record.failures[0].reason
