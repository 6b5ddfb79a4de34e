"""Entries that lie on a grid: half precision, quantisation, fixed steps, signs only."""

from attacker.diagnosis.grids import find_half_precision, find_levels
from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.residual import energy


def dtype(inquiry: Inquiry) -> list[Finding]:
    """Find weights, gradients or updates that were rounded to half precision."""
    training = inquiry.training
    grid = find_half_precision(
        inquiry.sent,
        inquiry.delta,
        training.weights,
        inquiry.algorithm,
        learning_rate=training.recipe.learning_rate,
    )
    if grid is None:
        return []
    rounded = grid.rounded(inquiry.plain.delta)
    lost = energy({name: rounded[name] - inquiry.plain.delta[name] for name in inquiry.delta})
    residual = sum(float((rounded[name] - own).square().sum()) for name, own in inquiry.delta.items())
    total = energy(inquiry.delta) or 1.0
    # An entry near the middle of two values goes to the other one if training was rounded as well.
    is_all = inquiry.residual <= inquiry.near_zero or residual <= 0.1 * lost or inquiry.residual * total <= 4.0 * lost
    evidence = Evidence.EXACT if is_all else inquiry.evidence(residual / total)
    return [
        Finding(
            cause="dtype", detail=f"{grid.detail}{_harmless(inquiry)}", residual=residual / total, evidence=evidence
        )
    ]


def quantisation(inquiry: Inquiry) -> list[Finding]:
    """Find levels: even ones between plus and minus a tensor's maximum, multiples of a step, or nothing but signs."""
    levels = find_levels(inquiry.delta, inquiry.roundings, unit=inquiry.unit)
    if levels is None:
        return []
    # Rounding, at random or to the nearest, moves an entry by less than the way to the next level.
    is_all = all(
        bool(((own - inquiry.plain.delta[name]).abs() <= 1.01 * levels.steps[name] + inquiry.roundings(name)).all())
        for name, own in inquiry.delta.items()
        if name in levels.steps
    )
    if levels.is_sign:
        agree = sum(
            float(inquiry.plain.delta[name].square()[own.sign() == inquiry.plain.delta[name].sign()].sum())
            for name, own in inquiry.delta.items()
        )
        is_all = agree >= 0.99 * energy({name: inquiry.plain.delta[name] for name in inquiry.delta})
    return [
        Finding(
            cause="quantisation",
            detail=f"{levels.detail}{_harmless(inquiry)}",
            residual=inquiry.residual,
            evidence=Evidence.STATISTICAL if is_all else Evidence.PARTIAL,
        )
    ]


def _harmless(inquiry: Inquiry) -> str:
    return ", which costs next to nothing" if inquiry.matches else ""
