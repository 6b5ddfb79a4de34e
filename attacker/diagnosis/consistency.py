"""Whether a recorded update can be what the declared training gives, judged without the truth.

Softmax and cross-entropy leave marks that no image changes, and so do ranks, counts and grids:

    sum over classes of the last layer's update = 0      |mean bias gradient| <= 1
    rank of a layer's update <= E N_c                    BatchNorm counts U_c batches
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.batch_norm import inferred_statistics
from attacker.diagnosis.grids import find_half_precision, find_levels
from attacker.labels.bias_gradient import read_bias_gradient
from attacker.labels.last_layer import LastLayer, find_last_layer
from attacker.observation import Observation, mean_gradient
from fl_sim.parameters import flatten, l2_norm
from fl_sim.records import Algorithm, LocalTraining, RoundRecord
from fl_sim.seeds import generator

_SINGLE_PRECISION = 2.0**-24
_MARGIN = 8.0
_SAME_NORM = 1e-5
_FAR = 10.0
_FEWEST_CLIENTS = 4
_PRUNED = 0.2
_SHOWN = 20


class Status(StrEnum):
    """What a check comes to."""

    FINE = "fine"
    SUSPICIOUS = "suspicious"
    IMPOSSIBLE = "impossible"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, with the numbers that it saw."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What checks look at: nothing that a server does not have.

    Attributes:
        observation: The update, E, m, eta and N_c.
        record: The round, with the other replies that were stored; their norms are compared.
        client_id: Whose update it is.
    """

    observation: Observation
    record: RoundRecord
    client_id: int

    @property
    def recipe(self) -> LocalTraining:
        """E, m, eta, momentum."""
        return self.observation.require_local_training()

    @property
    def num_examples(self) -> int:
        """N_c."""
        return self.observation.require_num_examples()

    @property
    def num_classes(self) -> int:
        """K."""
        return self.observation.dataset.num_classes

    @property
    def num_steps(self) -> int:
        """U_c."""
        return self.recipe.steps(self.num_examples)

    def rounding(self, name: str) -> Tensor:
        """Return how much single precision may change each entry of an update."""
        moved = self.observation.delta[name].abs()
        is_gradient = self.observation.algorithm is Algorithm.FEDSGD
        largest = moved if is_gradient else moved + self.observation.global_parameters[name].abs()
        return 4.0 * _SINGLE_PRECISION * largest.double()


def check_consistency(sight: Sight) -> tuple[Check, ...]:
    """Run all checks, in the table's order."""
    return tuple(Check(name=name, status=status, detail=detail) for name, (status, detail) in _run(sight).items())


def _run(sight: Sight) -> dict[str, tuple[Status, str]]:
    finite = _finite(sight)
    if finite[0] is Status.IMPOSSIBLE:
        return {"finite": finite}
    if not any(tensor.any() for tensor in sight.observation.delta.values()):
        return {"finite": finite, "norm": _norm(sight)}  # all else is about an update's shape
    return {"finite": finite, **{name: check(sight) for name, check in CHECKS.items()}}


def _finite(sight: Sight) -> tuple[Status, str]:
    wrong = [name for name, tensor in sight.observation.delta.items() if not torch.isfinite(tensor).all()]
    if wrong:
        return Status.IMPOSSIBLE, f"not finite: {', '.join(wrong)}; the client diverged, or its reply is damaged"
    return Status.FINE, "every entry is a finite number"


def _norm(sight: Sight) -> tuple[Status, str]:
    eta = sight.recipe.learning_rate
    norms = {
        update.client_id: l2_norm(update.delta(sight.record.global_parameters, eta)) for update in sight.record.updates
    }
    own = l2_norm(sight.observation.delta)
    unit = eta if sight.observation.algorithm is Algorithm.FEDSGD else 1.0
    if own == 0.0:
        return Status.IMPOSSIBLE, "the update is zero: the client did not train, or sent back what it got"
    others = [norm for client_id, norm in norms.items() if client_id != sight.client_id]
    same = sum(abs(norm / own - 1.0) < _SAME_NORM for norm in others)
    text = f"norm {own / unit:.4g}"
    if same:
        return Status.SUSPICIOUS, f"{text}, and {same} of {len(others)} other clients have the very same: clipping"
    if abs(float(f"{own / unit:.1e}") / (own / unit) - 1.0) < _SAME_NORM:
        return Status.SUSPICIOUS, f"{text}, a round number: clipping"
    if len(others) >= _FEWEST_CLIENTS - 1:
        median = float(torch.tensor(others).median())
        if median and not 1.0 / _FAR < own / median < _FAR:
            detail = f"{text}, where the median of the other clients is {median / unit:.4g}: another scale, or noise"
            return Status.SUSPICIOUS, detail
    return Status.FINE, text


def _classes_sum_to_zero(sight: Sight) -> tuple[Status, str]:
    layer = _last_layer(sight)
    if isinstance(layer, str):
        return Status.NOT_APPLICABLE, layer
    names = [name for name in (layer.weight, layer.bias) if name is not None]
    update = torch.cat([sight.observation.delta[name].double().reshape(sight.num_classes, -1) for name in names], dim=1)
    rounding = torch.cat([sight.rounding(name).reshape(sight.num_classes, -1) for name in names], dim=1)
    num_classes = len(update)
    off = float(update.sum(dim=0).square().mean().sqrt())
    hidden = float(rounding.square().sum(dim=0).mean().sqrt()) * max(1.0, sight.num_steps**0.5)
    size = float(update.square().mean().sqrt()) * num_classes**0.5
    if off <= _MARGIN * hidden + 1e-5 * size:
        return (
            Status.FINE,
            "the last layer's update sums to zero over classes, as that of softmax and cross-entropy does",
        )
    stddev = off / num_classes**0.5
    return (
        Status.IMPOSSIBLE,
        f"the last layer's update does not sum to zero over classes ({off / (size or 1.0):.1e} of its size): noise of "
        f"standard deviation {stddev:.2g} on the update would do that; so would pruning, quantisation, weight decay, "
        "or a loss that is not softmax and cross-entropy",
    )


def _bias_gradient(sight: Sight) -> tuple[Status, str]:
    layer = _last_layer(sight)
    if isinstance(layer, str) or layer.bias is None:
        return Status.NOT_APPLICABLE, layer if isinstance(layer, str) else "the last layer has no bias"
    gradient = mean_gradient(sight.observation)[layer.bias]
    steps = "" if not sight.recipe.momentum else " (momentum makes it longer)"
    largest, positive = float(gradient.abs().amax()), float(gradient.clamp_min(0.0).sum())
    gain = 1.0 / (1.0 - sight.recipe.momentum)
    if max(largest, positive) > gain * (1.0 + 1e-3):
        return (
            Status.IMPOSSIBLE,
            f"the mean bias gradient reaches {max(largest, positive):.3g}, which no mean of softmax minus label can "
            f"exceed: {gain:.3g}{steps}. Another scale: a sum in place of a mean, more steps, a larger learning rate, "
            "momentum, or noise",
        )
    return Status.FINE, f"the mean bias gradient reaches {largest:.3g}, at most {gain:.3g} is possible"


def _label_counts(sight: Sight) -> tuple[Status, str]:
    layer = _last_layer(sight)
    if isinstance(layer, str) or layer.bias is None:
        return Status.NOT_APPLICABLE, layer if isinstance(layer, str) else "the last layer has no bias"
    draw = generator(0, "diagnosis-of-labels")
    evidence = read_bias_gradient(sight.observation, generator=draw, method="bias_gradient")
    counts = sight.num_examples * evidence.shares.double()
    rounded = [count + 0.0 for count in counts.round(decimals=1).tolist()]  # no -0.0
    shown = " ".join(f"{count:.1f}" for count in rounded[:_SHOWN]) + (" …" if len(rounded) > _SHOWN else "")
    total, least = float(counts.sum()), float(counts.amin())
    if abs(total - sight.num_examples) > max(0.5, 0.02 * sight.num_examples):
        return (
            Status.SUSPICIOUS,
            f"recovered label counts sum to {total:.2f}, not to N_c = {sight.num_examples}: {shown}",
        )
    # The softmax is estimated from pictures that are not the client's: a little below zero says nothing.
    if least < -max(0.75, 0.1 * sight.num_examples):
        return (
            Status.SUSPICIOUS,
            f"recovered label counts are negative, {least:.1f} at worst: {shown}. The opposite sign, another scale, or "
            "a trained model whose softmax cannot be told from outside",
        )
    return Status.FINE, f"recovered label counts are none below zero and sum to N_c = {sight.num_examples}: {shown}"


def _spectrum(sight: Sight) -> tuple[Status, str]:
    linear = [name for name, module in sight.observation.model.named_modules() if isinstance(module, nn.Linear)]
    weights = [f"{name}.weight" if name else "weight" for name in linear]
    parameters = list(sight.observation.delta)
    told: list[str] = []
    for name in weights:
        update = sight.observation.delta[name].double()
        # The inputs of the first layer are the images themselves, in every epoch.
        is_first = bool(parameters) and name == parameters[0]
        bound = sight.num_examples * (1 if is_first else sight.recipe.epochs)
        if min(update.shape) <= bound:
            continue
        singular = torch.linalg.svdvals(update)
        hidden = sight.rounding(name).square().mean().sqrt() * sum(side**0.5 for side in update.shape)
        rank = int((singular > _MARGIN * sight.num_steps**0.5 * hidden + 1e-6 * singular[0]).sum())
        if rank > bound:
            what = "N_c" if is_first else "E N_c"
            return (
                Status.IMPOSSIBLE,
                f"the update of {name} has rank {rank}, and {what} = {bound} images give {bound} at most: noise, "
                "pruning, quantisation, weight decay, more images or more epochs than declared",
            )
        told.append(f"{name} {rank} of at most {bound}")
    if not told:
        return Status.NOT_APPLICABLE, "no fully connected layer is larger than the number of images"
    return Status.FINE, f"ranks of updates: {', '.join(told)}"


def _batch_norm_counts(sight: Sight) -> tuple[Status, str]:
    before, after = sight.observation.global_buffers, sight.observation.knowledge.client_buffers or {}
    counted = [name for name in before if name.endswith("num_batches_tracked") and name in after]
    if not counted:
        return Status.NOT_APPLICABLE, "the model has no BatchNorm layer that counts batches"
    seen = {int(after[name]) - int(before[name]) for name in counted}
    if seen == {0}:
        return Status.IMPOSSIBLE, "BatchNorm counted no batch: it was in evaluation mode, or its buffers are not sent"
    if seen != {sight.num_steps}:
        numbers = ", ".join(map(str, sorted(seen)))
        return (
            Status.IMPOSSIBLE,
            f"BatchNorm counted {numbers} batches, where E = {sight.recipe.epochs} and m = "
            f"{sight.recipe.batch_size or sight.num_examples} make {sight.num_steps}: other epochs or "
            "another batch size",
        )
    try:
        inferred = inferred_statistics(sight.observation.model, before, after, sight.num_steps)
    except ValueError as error:
        return Status.SUSPICIOUS, str(error)
    # Before the running average is undone, its rounding is amplified: a little below zero says nothing.
    if any(float(layer.variance.amin()) < -1e-3 * float(layer.variance.abs().amax()) for layer in inferred.values()):
        return Status.IMPOSSIBLE, "the batches' variances come out negative: noise on the buffers, or another momentum"
    return Status.FINE, f"BatchNorm counted {sight.num_steps} batches, as E and m make them"


def _recipe(sight: Sight) -> tuple[Status, str]:
    size, number = sight.recipe.batch_size, sight.num_examples
    if size is not None and size > number:
        return (
            Status.SUSPICIOUS,
            f"m = {size} is more than N_c = {number}: every step sees all images, the order tells nothing",
        )
    rest = number % (size or number)
    note = f"; the last batch of an epoch holds {rest}" if rest else ""
    return (
        Status.FINE,
        f"E = {sight.recipe.epochs}, m = {size or number}, N_c = {number}: {sight.num_steps} local steps{note}",
    )


def _unchanged(sight: Sight) -> tuple[Status, str]:
    unchanged = [name for name, tensor in sight.observation.delta.items() if not tensor.any()]
    if unchanged:
        return Status.SUSPICIOUS, f"exactly as it was sent out: {', '.join(unchanged)}; frozen, or without a gradient"
    return Status.FINE, "every tensor changed"


def _zeros(sight: Sight) -> tuple[Status, str]:
    entries = flatten({name: tensor for name, tensor in sight.observation.delta.items() if tensor.any()})
    share = float((entries == 0).double().mean())
    if share > _PRUNED:
        return (
            Status.SUSPICIOUS,
            f"{share:.0%} of the entries are exactly zero: pruning, or units that no image excites",
        )
    return Status.FINE, f"{share:.1%} of the entries are exactly zero"


def _grid(sight: Sight) -> tuple[Status, str]:
    observation = sight.observation
    weights = {name: tensor.double() for name, tensor in observation.global_parameters.items()}
    delta = {name: tensor.double() for name, tensor in observation.delta.items()}
    (update,) = [update for update in sight.record.updates if update.client_id == sight.client_id]
    delta = {name: delta[name] for name in update.tensors}
    if observation.algorithm is Algorithm.FEDAVG:  # that of the observation was rounded once more
        delta = {name: tensor.double() - weights[name] for name, tensor in update.tensors.items()}
    half = find_half_precision(
        update.tensors, delta, weights, update.algorithm, learning_rate=sight.recipe.learning_rate
    )
    if half is not None:
        return Status.SUSPICIOUS, half.detail
    unit = sight.recipe.learning_rate if observation.algorithm is Algorithm.FEDSGD else 1.0
    levels = find_levels(delta, sight.rounding, unit=unit)
    if levels is not None:
        return Status.SUSPICIOUS, levels.detail
    return Status.FINE, "entries lie on no grid coarser than single precision"


def _last_layer(sight: Sight) -> LastLayer | str:
    """Return the layer that gives the logits, or why there is none."""
    try:
        return find_last_layer(sight.observation.model, sight.observation.dataset.num_classes)
    except DoesNotApplyError as error:
        return str(error)


CHECKS: dict[str, Callable[[Sight], tuple[Status, str]]] = {
    "norm": _norm,
    "classes_sum_to_zero": _classes_sum_to_zero,
    "bias_gradient": _bias_gradient,
    "label_counts": _label_counts,
    "spectrum": _spectrum,
    "batch_norm_counts": _batch_norm_counts,
    "recipe": _recipe,
    "unchanged": _unchanged,
    "zeros": _zeros,
    "grid": _grid,
}


def worst(checks: Sequence[Check]) -> Status:
    """Return what all checks together come to."""
    for status in (Status.IMPOSSIBLE, Status.SUSPICIOUS):
        if any(check.status is status for check in checks):
            return status
    return Status.FINE
