"""Every cause of a failed attack is planted in a client, and the diagnosis names it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacker.diagnosis.hypotheses import HYPOTHESES
from attacker.diagnosis.inquiry import Evidence
from attacker.diagnosis.rendering import sentences
from attacker.diagnosis.replay import DeclaredTraining, replay
from attacker.diagnosis.verdict import Outcome
from attacker.local_update import simulate_local_update
from fl_sim.models import Normalisation
from fl_sim.parameters import l2_norm, scale
from fl_sim.records import Algorithm, DatasetSpec, DeclaredDefense, LocalTraining
from tests.attacker.planted import NUM_IMAGES, RECIPE, Change, Client, diagnosis_of, orders
from tests.attacker.small_problems import bn_cnn, cnn, mlp, pictures, seeded, spec

MEAN, STD = 0.4, 0.25
"""The public normalisation of `small_problems.spec`."""
ONE_STEP = LocalTraining(learning_rate=0.25)


def dropping(dataset: DatasetSpec, *, batch_norm: bool = False) -> nn.Module:
    channels, height, width = dataset.image_shape
    size = channels * height * width
    return seeded(
        lambda: nn.Sequential(
            Normalisation(dataset.mean, dataset.std),
            nn.Flatten(),
            nn.Linear(size, 24),
            nn.BatchNorm1d(24) if batch_norm else nn.Identity(),
            nn.Sigmoid(),
            nn.Dropout(0.5),
            nn.Linear(24, dataset.num_classes),
        )
    )


def square(dataset: DatasetSpec) -> nn.Module:
    """Return a network with two square layers of one shape, which names alone tell apart."""
    side = dataset.image_shape[-1] ** 2
    return seeded(
        lambda: nn.Sequential(
            Normalisation(dataset.mean, dataset.std),
            nn.Flatten(),
            nn.Linear(side, 16),
            nn.Sigmoid(),
            nn.Linear(16, 16),
            nn.Sigmoid(),
            nn.Linear(16, 16),
            nn.Sigmoid(),
            nn.Linear(16, dataset.num_classes),
        )
    )


def each(change) -> Change:
    return lambda tensors: {name: change(tensor) for name, tensor in tensors.items()}


def noisy(draw) -> Change:
    source = torch.Generator().manual_seed(5)
    return lambda update: {name: tensor + draw(tensor.shape, source) for name, tensor in update.items()}


def gaussian(stddev: float):
    return lambda shape, source: stddev * torch.randn(shape, generator=source)


def laplace(width: float):
    def draw(shape, source):
        first, second = torch.empty(2, *shape).exponential_(generator=source)
        return width * (first - second)

    return draw


def smallest_dropped(update: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    border = torch.cat([tensor.abs().flatten() for tensor in update.values()]).median()
    return {name: tensor * (tensor.abs() > border) for name, tensor in update.items()}


def randomly_dropped(update: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    source = torch.Generator().manual_seed(6)
    return {name: tensor * (torch.rand(tensor.shape, generator=source) > 0.3) for name, tensor in update.items()}


def rounded_at_random(bits: int) -> Change:
    source, levels = torch.Generator().manual_seed(7), 2 ** (bits - 1) - 1

    def change(update: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        quantised = {}
        for name, tensor in update.items():
            largest = tensor.abs().amax()
            draw = torch.rand(tensor.shape, generator=source)
            quantised[name] = (tensor / largest * levels + draw).floor().clamp(-levels, levels) / levels * largest
        return quantised

    return change


def shortened_to(norm: float) -> Change:
    return lambda update: scale(update, norm / l2_norm(update))


def with_recipe(**changes) -> Client:
    return Client(recipe=replace(RECIPE, **changes))


# What a client does that it does not declare: cause, words of the detail, the client, and how it is diagnosed.
IN_TRAINING = {
    "ascent": ("sign", "climbs", Client(ascends=True), {}),
    "learning rate": ("learning_rate", "0.6 where 0.25", with_recipe(learning_rate=0.6), {}),
    "sum": ("scale", "summed over a batch", Client(sums_loss=True), {}),
    "momentum": ("momentum", "momentum 0.9 where", with_recipe(momentum=0.9), {}),
    "unusual momentum": ("momentum", "momentum 0.73 where", with_recipe(momentum=0.73), {}),
    "Nesterov": ("momentum", "Nesterov momentum 0.9", Client(recipe=replace(RECIPE, momentum=0.9), nesterov=True), {}),
    "no momentum": ("momentum", "momentum 0 where", Client(), {"declared": replace(RECIPE, momentum=0.9)}),
    "weight decay": ("weight_decay", "weight decay 0.01 ", Client(weight_decay=1e-2), {}),
    "usual weight decay": ("weight_decay", "weight decay 0.0005 ", Client(weight_decay=5e-4), {}),
    "more epochs": ("epochs", "E = 3 where 2", with_recipe(epochs=3), {}),
    "fewer epochs": ("epochs", "E = 1 where 2", with_recipe(epochs=1), {}),
    "batch size": ("batch_size", "m = 2 where 4", with_recipe(batch_size=2), {}),
    "full batch": ("batch_size", "m = all where 4", with_recipe(batch_size=None), {}),
    "dropped batch": ("batch_size", "left out", Client(drops_last=True), {}),
    "both": ("epochs_and_batch_size", "E = 3 where 2 is declared and m = 2", with_recipe(epochs=3, batch_size=2), {}),
    "no shuffling": ("batch_order", "own order", Client(static=True), {}),
    "other shuffling": ("batch_order", "which was found: {", Client(order_seed=5), {}),
    "not normalised": ("normalisation", "not normalised", Client(feed=lambda pixels: MEAN + STD * pixels), {}),
    "normalised twice": ("normalisation", "twice", Client(feed=lambda pixels: (pixels - MEAN) / STD), {}),
    "bytes": ("normalisation", "0 to 255", Client(feed=lambda pixels: 255 * pixels), {}),
    "by a half": ("normalisation", "[-1, 1]", Client(feed=lambda pixels: MEAN + STD * (2 * pixels - 1)), {}),
    "channels": ("normalisation", "reverse", Client(feed=lambda pixels: pixels.flip(1)), {"channels": 3}),
    "BatchNorm": ("mode", "BatchNorm is in evaluation", Client(evaluated=(nn.BatchNorm2d,)), {"build": bn_cnn}),
    "dropout": ("mode", "dropout is in evaluation", Client(evaluated=(nn.Dropout,)), {"build": dropping}),
    "both modes": (
        "mode",
        "BatchNorm and dropout",
        Client(evaluated=(nn.BatchNorm1d, nn.Dropout)),
        {"build": lambda dataset: dropping(dataset, batch_norm=True)},
    ),
    "frozen": ("frozen", "2.weight, 2.bias", Client(frozen=("2.weight", "2.bias")), {}),
    "clipped steps": ("clipping", "local step is clipped to norm 0.4", Client(step_norm=0.4), {}),
    "clipped examples": ("clipping", "image's gradient is clipped to norm 0.6", Client(example_norm=0.6), {}),
}

# What becomes of the update before it is sent.
BEFORE_SENDING = {
    "sign": ("sign", "opposite sign", each(torch.neg)),
    "divided by steps": ("scale", "divided by the number of local steps", each(lambda tensor: tensor / 4)),
    "divided by rate": ("scale", "divided by the learning rate", each(lambda tensor: tensor / 0.25)),
    "float16": ("dtype", "precision of float16", each(lambda tensor: tensor.half().float())),
    "bfloat16": ("dtype", "precision of bfloat16", each(lambda tensor: tensor.bfloat16().float())),
    "2 bits": ("quantisation", "2 bits", rounded_at_random(2)),
    "4 bits": ("quantisation", "4 bits", rounded_at_random(4)),
    "8 bits": ("quantisation", "8 bits", rounded_at_random(8)),
    "12 bits": ("quantisation", "12 bits", rounded_at_random(12)),
    "fixed step": ("quantisation", "multiple of 0.001", each(lambda tensor: (tensor / 1e-3).round() * 1e-3)),
    "signs only": ("quantisation", "only signs", each(lambda tensor: tensor.sign() * tensor.abs().mean())),
    "noise": ("noise", "white Gaussian noise", noisy(gaussian(1e-2))),
    "faint noise": ("noise", "white Gaussian noise", noisy(gaussian(4e-4))),
    "Laplace noise": ("noise", "white Laplace noise", noisy(laplace(1e-2))),
    "pruned": ("pruning", "smallest entries", smallest_dropped),
    "pruned at random": ("pruning", "all over", randomly_dropped),
    "clipped": ("clipping", "shortened to norm 0.1", shortened_to(0.1)),
}


def sent_otherwise(change: Change) -> dict[str, Change]:
    return {"change_sent": change}


# What becomes of the tensors on their way.
ON_THE_WAY = {
    "missing": ("missing", "2.bias", mlp, lambda sent: {n: t for n, t in sent.items() if n != "2.bias"}),
    "renamed": ("renamed", "2.bias is called body.2.bias", mlp, lambda sent: {_renamed(n): t for n, t in sent.items()}),
    "transposed": ("transposed", "2.weight", mlp, lambda sent: {**sent, "2.weight": sent["2.weight"].T}),
    "square transposed": ("transposed", "4.weight", square, lambda sent: {**sent, "4.weight": sent["4.weight"].T}),
    "exchanged": (
        "renamed",
        "4.weight is called 6.weight",
        square,
        lambda sent: {**sent, "4.weight": sent["6.weight"], "6.weight": sent["4.weight"]},
    ),
    "float16 weights": ("dtype", "weights that are sent", mlp, each(lambda tensor: tensor.half().float())),
    "half type": ("dtype", "weights that are sent", mlp, each(lambda tensor: tensor.bfloat16())),
}


def _renamed(name: str) -> str:
    return f"body.{name}" if name.startswith("2.") else name


@pytest.mark.parametrize("build", [mlp, cnn, bn_cnn])
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_an_untouched_update_matches(build, algorithm) -> None:
    found = diagnosis_of(Client(), build=build, algorithm=algorithm)
    assert (found.outcome, found.cause) == (Outcome.MATCHES, None)
    assert found.residual < 1e-10
    assert "optimisation is the limit" in sentences(found, ())[0]


@pytest.mark.parametrize("name", IN_TRAINING)
def test_what_differs_in_training_is_named(name) -> None:
    cause, words, client, options = IN_TRAINING[name]
    found = diagnosis_of(client, **options)
    assert (found.outcome, found.cause) == (Outcome.MISMATCH, cause), found.findings
    assert words in found.findings[0].detail
    assert found.residual > found.near_zero
    assert found.findings[0].residual < found.near_zero
    assert not found.alike


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("name", BEFORE_SENDING)
def test_what_is_done_to_the_update_is_named(name, algorithm) -> None:
    cause, words, change = BEFORE_SENDING[name]
    if algorithm is Algorithm.FEDSGD and name == "divided by steps":
        pytest.skip("FedSGD takes one step")
    # Of FedSGD, the gradient is what is sent and what is changed.
    options = sent_otherwise(change) if algorithm is Algorithm.FEDSGD else {"change_update": change}
    found = diagnosis_of(Client(), algorithm=algorithm, **options)
    assert found.cause == cause, found.findings
    assert words in found.findings[0].detail
    is_harmless = found.residual <= found.near_zero
    assert found.outcome is (Outcome.MATCHES if is_harmless else Outcome.MISMATCH)
    assert not is_harmless or name in ("float16", "12 bits")


@pytest.mark.parametrize("name", ON_THE_WAY)
def test_what_happens_to_tensors_on_their_way_is_named(name) -> None:
    cause, words, build, change = ON_THE_WAY[name]
    found = diagnosis_of(Client(), build=build, change_sent=change)
    assert found.cause == cause, found.findings
    assert words in found.findings[0].detail
    is_harmless = cause == "dtype" and found.residual <= found.near_zero
    assert found.outcome is (Outcome.MATCHES if is_harmless else Outcome.MISMATCH)


@pytest.mark.parametrize("stddev", [1e-2, 1e-3])
def test_the_noise_s_standard_deviation_is_measured_in_the_units_of_what_is_sent(stddev) -> None:
    found = diagnosis_of(Client(), algorithm=Algorithm.FEDSGD, change_sent=noisy(gaussian(stddev)))
    assert float(found.findings[0].detail.split()[-1]) == pytest.approx(stddev, rel=0.06)


def test_of_a_single_step_rate_and_sum_cannot_be_told_apart_and_both_are_said() -> None:
    found = diagnosis_of(Client(sums_loss=True), algorithm=Algorithm.FEDSGD)
    assert found.cause == "scale"
    assert "summed over a batch" in found.findings[0].detail
    assert f"learning rate {NUM_IMAGES} times" in found.findings[0].detail


def test_the_update_in_place_of_the_weights_is_named() -> None:
    start = {name: tensor.detach() for name, tensor in mlp(spec()).named_parameters()}
    found = diagnosis_of(
        Client(), change_sent=lambda sent: {name: tensor - start[name] for name, tensor in sent.items()}
    )
    assert found.cause == "scale"
    assert "in place of the weights" in found.findings[0].detail


def test_several_causes_at_once_are_said_to_be_unexplained_in_part() -> None:
    declared = replace(RECIPE, epochs=3, batch_size=None)
    client = Client(recipe=replace(declared, momentum=0.9), sums_loss=True, weight_decay=0.3)
    found = diagnosis_of(client, declared=declared)
    assert found.outcome in (Outcome.PARTLY, Outcome.UNEXPLAINED)
    assert all(finding.evidence is Evidence.PARTIAL for finding in found.findings)
    assert "least explained" in sentences(found, ())[-1]


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_an_update_of_an_absurd_length_is_a_scale(factor) -> None:
    found = diagnosis_of(Client(), algorithm=Algorithm.FEDSGD, change_sent=each(lambda tensor: factor * tensor))
    assert found.cause == "scale", found.findings
    assert f"{factor:g} times the replayed" in found.findings[0].detail


def test_a_replay_that_diverges_explains_nothing() -> None:
    found = diagnosis_of(Client(), declared=replace(RECIPE, learning_rate=1e200))
    assert found.residual == math.inf
    assert "–" in sentences(found, ())[0]


def test_the_order_takes_no_blame_for_what_another_cause_explains_far_better() -> None:
    found = diagnosis_of(Client(recipe=replace(RECIPE, momentum=0.9)), change_update=noisy(gaussian(1e-3)))
    assert (found.outcome, found.cause) == (Outcome.PARTLY, "momentum"), found.findings
    assert float(found.findings[0].detail.split()[1]) == pytest.approx(0.9, abs=0.01)


def test_other_images_than_the_client_s_are_no_match() -> None:
    found = diagnosis_of(Client(feed=lambda images: images.flip(-1) ** 3), algorithm=Algorithm.FEDSGD)
    assert found.outcome in (Outcome.PARTLY, Outcome.UNEXPLAINED)


@pytest.mark.parametrize(
    ("rate", "outcome"), [(0.01, Outcome.MATCHES), (0.02, Outcome.MISMATCH)], ids=["as declared", "another rate"]
)
def test_with_an_unknown_order_draws_are_averaged(rate, outcome) -> None:
    declared = replace(RECIPE, epochs=1, batch_size=3, learning_rate=0.01)
    found = diagnosis_of(
        Client(recipe=replace(declared, learning_rate=rate)), declared=declared, build=cnn, knows_order=False
    )
    assert found.outcome is outcome
    assert found.near_zero < found.expected < 0.1
    if outcome is Outcome.MISMATCH:
        assert "learning_rate" in {finding.cause for finding in (found.findings[0], *found.alike)}


def test_dropout_masks_are_the_client_s_own() -> None:
    found = diagnosis_of(Client(), build=dropping, declared=ONE_STEP, algorithm=Algorithm.FEDSGD)
    assert found.outcome is Outcome.MATCHES
    assert found.near_zero < found.residual < 3 * found.expected


def test_an_order_that_is_not_found_is_still_told_by_its_size(monkeypatch) -> None:
    monkeypatch.setattr("attacker.diagnosis.hypotheses.searched_order._MOST_STEPS", 0)
    found = diagnosis_of(Client(order_seed=5))
    assert (found.outcome, found.cause) == (Outcome.MISMATCH, "batch_order")
    assert found.findings[0].evidence is Evidence.STATISTICAL
    assert "another random order" in found.findings[0].detail


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_larger_client_s_order_is_told_by_its_size(seed, monkeypatch) -> None:
    monkeypatch.setattr("tests.attacker.planted.NUM_IMAGES", 20)
    monkeypatch.setattr("attacker.diagnosis.hypotheses.searched_order._MOST_STEPS", 0)
    recipe = LocalTraining(epochs=2, batch_size=5, learning_rate=0.05)
    found = diagnosis_of(Client(recipe=recipe, order_seed=seed), declared=recipe)
    assert (found.outcome, found.cause) == (Outcome.MISMATCH, "batch_order"), found.findings


def test_the_order_that_is_found_is_the_client_s() -> None:
    found = diagnosis_of(Client(order_seed=5))
    size = RECIPE.batch_size
    assert size is not None
    for epoch in orders(NUM_IMAGES, RECIPE.epochs, seed=5):
        batches = [" ".join(map(str, sorted(batch.tolist()))) for batch in epoch.split(size)]
        assert " ".join(f"{{{batch}}}" for batch in batches) in found.findings[0].detail


def test_a_declared_defense_is_said_to_be_declared() -> None:
    found = diagnosis_of(Client(), change_update=noisy(gaussian(0.01)))
    declared = DeclaredDefense(name="gaussian_noise", options={"stddev": 0.01})
    assert any("declared as gaussian_noise" in line for line in sentences(found, [declared]))
    assert "no defense is declared" in sentences(found, ())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_replay_agrees_with_the_attackers_simulation(momentum) -> None:
    dataset = spec()
    model, images = cnn(dataset).double(), pictures(NUM_IMAGES).double()
    labels = torch.arange(NUM_IMAGES) % dataset.num_classes
    recipe = replace(RECIPE, momentum=momentum)
    visits = orders(NUM_IMAGES, recipe.epochs)
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    public = torch.tensor(MEAN), torch.tensor(STD)
    training = DeclaredTraining(
        model=model,
        weights=weights,
        buffers={},
        images=images,
        labels=labels,
        mean=public[0],
        std=public[1],
        recipe=recipe,
        visits=(visits,),
    )
    simulated = simulate_local_update(model, weights, {}, images, labels, recipe, order=visits)
    delta = scale(simulated, -recipe.learning_rate * recipe.steps(NUM_IMAGES))
    for name, tensor in replay(training, training.declared()).delta.items():
        torch.testing.assert_close(tensor, delta[name])


def test_every_hypothesis_says_what_it_does() -> None:
    assert all(hypothesis.__doc__ for hypothesis in HYPOTHESES.values())
    planted = {entry[0] for table in (IN_TRAINING, BEFORE_SENDING) for entry in table.values()}
    assert planted == set(HYPOTHESES) - {"order_search"}  # it finds a batch_order
