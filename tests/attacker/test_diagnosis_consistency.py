"""What an update betrays without the truth: marks of softmax, ranks, counts, grids."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacker.diagnosis.consistency import CHECKS, Sight, Status, check_consistency, worst
from attacker.observation import Observation
from fl_sim.records import Algorithm, ClientUpdate, LocalTraining, RoundRecord
from tests.attacker.small_problems import bn_cnn, mlp, observe, pictures, spec

RECIPE = LocalTraining(epochs=2, batch_size=4, learning_rate=0.1)
NUM_IMAGES = 6


def seen(
    build=mlp, *, recipe: LocalTraining | None = RECIPE, labels: tuple[int, ...] = (0, 0, 0, 1, 2, 2)
) -> Observation:
    dataset = spec()
    return observe(build(dataset).train(), dataset, pictures(NUM_IMAGES), torch.tensor(labels), recipe=recipe)


def sight_of(observation: Observation, *others: Observation) -> Sight:
    """Return what a server sees of several clients' updates, of which the first is looked at."""
    updates = tuple(
        ClientUpdate(
            server_round=1,
            client_id=client_id,
            num_examples=NUM_IMAGES,
            algorithm=own.algorithm,
            tensors=_sent(own),
        )
        for client_id, own in enumerate((observation, *others))
    )
    record = RoundRecord(
        server_round=1,
        global_parameters=observation.global_parameters,
        global_buffers=observation.global_buffers,
        updates=updates,
        failures=(),
    )
    return Sight(observation=observation, record=record, client_id=0)


def _sent(observation: Observation) -> dict[str, Tensor]:
    if observation.algorithm is Algorithm.FEDSGD:
        return {name: -10.0 * tensor for name, tensor in observation.delta.items()}
    return {name: observation.global_parameters[name] + tensor for name, tensor in observation.delta.items()}


def changed(observation: Observation, change) -> Observation:
    return replace(observation, delta={name: change(tensor) for name, tensor in observation.delta.items()})


def declared(observation: Observation, **recipe) -> Observation:
    knowledge = observation.knowledge
    assert knowledge.local_training is not None
    return replace(
        observation, knowledge=replace(knowledge, local_training=replace(knowledge.local_training, **recipe))
    )


def status(name: str, observation: Observation, *others: Observation) -> Status:
    found = {check.name: check for check in check_consistency(sight_of(observation, *others))}
    return found[name].status


@pytest.mark.parametrize("build", [mlp, bn_cnn])
@pytest.mark.parametrize("recipe", [RECIPE, None], ids=["fedavg", "fedsgd"])
def test_an_untouched_update_is_consistent(build, recipe) -> None:
    checks = check_consistency(sight_of(seen(build, recipe=recipe)))
    assert worst(checks) is Status.FINE, checks
    assert [check.name for check in checks] == ["finite", *CHECKS]


def noisy(tensor: Tensor) -> Tensor:
    return tensor + 1e-2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))


def decayed(observation: Observation) -> Observation:
    weights = observation.global_parameters
    return replace(observation, delta={n: t - 4e-3 * weights[n] for n, t in observation.delta.items()})


IMPOSSIBLE = {
    "not finite": ("finite", lambda seen: changed(seen, lambda tensor: tensor / 0)),
    "zero": ("norm", lambda seen: changed(seen, torch.zeros_like)),
    "noise": ("classes_sum_to_zero", lambda seen: changed(seen, noisy)),
    "weight decay": ("classes_sum_to_zero", decayed),
    "a sum": ("bias_gradient", lambda seen: changed(seen, lambda tensor: 6 * tensor)),
    "rank": ("spectrum", lambda seen: changed(seen, noisy)),
}
SUSPICIOUS = {
    "clipping": ("norm", lambda seen: _clipped(seen, 0.05)),
    "m": ("recipe", lambda seen: declared(seen, batch_size=7)),
    "frozen": ("unchanged", lambda seen: replace(seen, delta={**seen.delta, "2.bias": torch.zeros(24)})),
    "pruning": ("zeros", lambda seen: changed(seen, lambda tensor: tensor * (tensor > 0))),
    "quantisation": ("grid", lambda seen: changed(seen, _in_fifteen_levels)),
}


def _clipped(observation: Observation, norm: float) -> Observation:
    length = float(torch.cat([tensor.flatten() for tensor in observation.delta.values()]).norm())
    unit = 0.1 if observation.algorithm is Algorithm.FEDSGD else 1.0
    return changed(observation, lambda tensor: tensor * unit * norm / length)


def _in_fifteen_levels(tensor: Tensor) -> Tensor:
    largest = tensor.abs().amax()
    return (tensor / largest * 7).round() / 7 * largest


@pytest.mark.parametrize("recipe", [RECIPE, None], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_said_to_be_impossible(name, recipe) -> None:
    check, change = IMPOSSIBLE[name]
    assert status(check, change(seen(recipe=recipe))) is Status.IMPOSSIBLE


@pytest.mark.parametrize("recipe", [RECIPE, None], ids=["fedavg", "fedsgd"])
@pytest.mark.parametrize("name", SUSPICIOUS)
def test_what_is_strange_is_said_to_be_suspicious(name, recipe) -> None:
    check, change = SUSPICIOUS[name]
    assert status(check, change(seen(recipe=recipe))) is Status.SUSPICIOUS


def test_half_precision_of_an_update_is_seen() -> None:
    assert status("grid", changed(seen(), lambda tensor: tensor.half().float())) is Status.SUSPICIOUS


@pytest.mark.parametrize("recipe", [RECIPE, None], ids=["fedavg", "fedsgd"])
def test_the_opposite_sign_makes_label_counts_negative_where_few_classes_are_held(recipe) -> None:
    observation = seen(recipe=recipe, labels=(1,) * NUM_IMAGES)
    assert status("label_counts", observation) is Status.FINE
    assert status("label_counts", changed(observation, torch.neg)) is Status.SUSPICIOUS


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"epochs": 3}, {"batch_size": 2}])
def test_batches_that_batch_norm_counted_contradict_a_wrong_recipe(changes) -> None:
    assert status("batch_norm_counts", seen(bn_cnn)) is Status.FINE
    assert status("batch_norm_counts", declared(seen(bn_cnn), **changes)) is Status.IMPOSSIBLE


def test_batch_norm_in_evaluation_mode_counts_nothing() -> None:
    observation = seen(bn_cnn)
    kept = replace(observation.knowledge, client_buffers=observation.global_buffers)
    assert status("batch_norm_counts", replace(observation, knowledge=kept)) is Status.IMPOSSIBLE


def test_norms_are_compared_with_those_of_other_clients() -> None:
    own, other = seen(), seen(recipe=replace(RECIPE, epochs=1))
    assert status("norm", own, other, other, other) is Status.FINE
    assert status("norm", changed(own, lambda tensor: 30 * tensor), other, other, other) is Status.SUSPICIOUS
    norm = float(torch.cat([tensor.flatten() for tensor in own.delta.values()]).norm())
    bound = 0.4321 * norm  # no round number: only that others have it betrays it
    assert status("norm", _clipped(own, bound), _clipped(other, bound)) is Status.SUSPICIOUS
    assert status("norm", _clipped(own, bound), other) is Status.FINE
