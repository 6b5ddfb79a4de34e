"""The update is the replayed one times a number: a sign, a sum in place of a mean, a gradient in place of an update."""

import math
from dataclasses import replace

from attacker.diagnosis.inquiry import Finding, Inquiry
from attacker.diagnosis.residual import difference, energy, least_squares_factor
from fl_sim.records import Algorithm

_TOLERANCE = 1e-3
_ALIKE = 1e-2
"""Factors this near to 1 say nothing, as every mismatch changes the length a little; those near to -1 are a sign."""


def sign(inquiry: Inquiry) -> list[Finding]:
    """Find an update of the opposite sign, or one that climbs the loss."""
    flipped = _scaled(inquiry, -1.0, "sign", "it is the replayed update with the opposite sign")
    if inquiry.training.num_steps == 1:
        return [flipped]
    ascends = replace(inquiry.training.declared(), ascends=True)
    return [flipped, inquiry.tried("sign", "the client climbs the loss in every local step", ascends)]


def scale(inquiry: Inquiry) -> list[Finding]:
    """Find an update that is the replayed one times a number, and say what such a number comes from."""
    found: list[Finding] = []
    factor = least_squares_factor(inquiry.plain.delta, inquiry.delta)
    if min(abs(factor - 1.0), abs(factor + 1.0)) > _ALIKE and factor != 0.0:
        readings = " or ".join(_readings(inquiry, factor)) or "no number of the recipe"
        detail = f"it is {factor:.6g} times the replayed update: {readings}"
        found.append(replace(_scaled(inquiry, factor, "scale", detail), num_fitted=1))
    found.extend(_other_meaning(inquiry))
    if inquiry.training.num_steps > 1 or inquiry.training.recipe.batch_size is not None:
        sums = replace(inquiry.training.declared(), sums_loss=True)
        found.append(inquiry.tried("scale", "the loss is summed over a batch, not averaged", sums))
    return found


def learning_rate(inquiry: Inquiry) -> list[Finding]:
    """Find another learning rate; of a single step it is the scale."""
    if inquiry.training.num_steps == 1:
        return []
    declared = inquiry.training.recipe.learning_rate
    start = abs(least_squares_factor(inquiry.plain.delta, inquiry.delta)) or 1.0
    plain = inquiry.training.declared()
    factor, replayed = inquiry.fit(
        lambda number: plain.with_recipe(learning_rate=number * declared), (start * 1.1, start), (1e-4, 1e4)
    )
    if abs(factor - 1.0) <= _ALIKE:
        return []
    detail = f"learning rate {factor * declared:.4g} where {declared:g} is declared ({factor:.4g} times)"
    return [inquiry.found("learning_rate", detail, replayed, num_fitted=1)]


def _scaled(inquiry: Inquiry, factor: float, cause: str, detail: str) -> Finding:
    residual = energy(difference(inquiry.delta, inquiry.plain.delta, factor)) / (energy(inquiry.delta) or 1.0)
    evidence = inquiry.evidence(residual, factor**2 * inquiry.plain.variance)
    return Finding(cause=cause, detail=detail, residual=residual, evidence=evidence)


def _readings(inquiry: Inquiry, factor: float) -> list[str]:
    """Return what a factor may come from."""
    training = inquiry.training
    eta, num_steps, num_examples = training.recipe.learning_rate, training.num_steps, training.num_examples
    size = min(training.recipe.batch_size or num_examples, num_examples)
    known = {
        "the loss summed over a batch": float(size),
        "the loss divided by the batch size twice": 1.0 / size,
        "the sum over all images": float(num_examples),
        "the mean over images taken twice": 1.0 / num_examples,
        "multiplied by the number of local steps": float(num_steps),
        "divided by the number of local steps": 1.0 / num_steps,
        "divided by the learning rate": 1.0 / eta,
        "multiplied by the learning rate": eta,
        "a gradient where an update is declared": -1.0 / (eta * num_steps),
        "the update where a gradient is declared": -eta,
    }
    # One image, one step or a rate of 1 make some of them the same as nothing.
    readings = [
        reading
        for reading, value in known.items()
        if abs(value - 1.0) > _ALIKE and abs(factor / value - 1.0) < _TOLERANCE
    ]
    if factor > 0.0:
        readings.append(f"a learning rate {factor:.4g} times as large, or so many more steps that change little")
    if 0.0 < factor < 1.0:
        norm = math.sqrt(energy(inquiry.delta)) / inquiry.unit
        readings.append(f"clipping of what is sent to norm {norm:.4g}")
    return readings


def _other_meaning(inquiry: Inquiry) -> list[Finding]:
    """Look at a FedAvg reply as if it were no weights but an update or a gradient."""
    if inquiry.algorithm is Algorithm.FEDSGD:
        return []
    sent = {name: tensor + inquiry.training.weights[name] for name, tensor in inquiry.delta.items()}
    factor = least_squares_factor(inquiry.plain.delta, sent)
    if not energy(sent) or factor == 0.0:
        return []
    residual = energy(difference(sent, inquiry.plain.delta, factor)) / energy(sent)
    if residual > 0.5:
        return []
    what = "the update" if abs(factor - 1.0) < _TOLERANCE else f"{factor:.4g} times the update (a gradient?)"
    return [
        Finding(
            cause="scale",
            detail=f"{what} is sent in place of the weights",
            residual=residual,
            evidence=inquiry.evidence(residual),
            num_fitted=0 if abs(factor - 1.0) < _TOLERANCE else 1,
        )
    ]
