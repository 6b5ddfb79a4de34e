"""What is left is white: alike in every tensor, without a tie to the update, of a known distribution."""

import math

import torch

from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.residual import difference, energy, inner, least_squares_factor

_FEWEST_ENTRIES = 100
_DEVIATIONS = 6.0
"""Standard errors by which a statistic of white noise may miss its mean; tensors are many."""
_SHAPES = {"Gaussian": (math.sqrt(2.0 / math.pi), 3.0), "Laplace": (math.sqrt(0.5), 6.0)}
"""Mean magnitude over root mean square, and kurtosis. The first tells the two apart with fewer entries."""
_SHAPE_ERROR = 0.354
"""Standard error of the first, for Laplace noise, times the root of the number of entries."""
_WIDEST = 0.045
"""Half the way from one shape to the other."""


def noise(inquiry: Inquiry) -> list[Finding]:
    """Find noise on the update, and its standard deviation in the units of what is sent."""
    for factor in (1.0, least_squares_factor(inquiry.plain.delta, inquiry.delta)):
        left = difference(inquiry.delta, inquiry.plain.delta, factor)
        kind = _distribution(left)
        if kind is None or not _is_untied(left, inquiry):
            continue
        stddev = float(torch.cat([tensor.flatten() for tensor in left.values()]).std()) / inquiry.unit
        spread = f"standard deviation {stddev:.4g}" + (
            f", scale {stddev / math.sqrt(2):.4g}" if kind == "Laplace" else ""
        )
        before = "" if factor == 1.0 else f", on {factor:.4g} times the replayed update"
        return [
            Finding(
                cause="noise",
                detail=f"what is left is white {kind} noise of {spread}{before}",
                residual=energy(left) / (energy(inquiry.delta) or 1.0),
                evidence=Evidence.STATISTICAL,
                num_fitted=1 if factor == 1.0 else 2,
            )
        ]
    return []


def _distribution(left: dict[str, torch.Tensor]) -> str | None:
    """Return the distribution whose shape the entries have, if every tensor has the same variance."""
    entries = torch.cat([tensor.flatten() for tensor in left.values()])
    number, variance = len(entries), float(entries.square().mean())
    if number < _FEWEST_ENTRIES or variance == 0.0:
        return None
    shape = float(entries.abs().mean()) / math.sqrt(variance)
    tolerance = min(_WIDEST, _DEVIATIONS * _SHAPE_ERROR / math.sqrt(number))
    for kind, (expected, kurtosis) in _SHAPES.items():
        if abs(shape - expected) <= tolerance and all(_fits(tensor, variance, kurtosis) for tensor in left.values()):
            return kind
    return None


def _fits(tensor: torch.Tensor, variance: float, kurtosis: float) -> bool:
    """Say whether a tensor's entries have mean 0 and the variance of all."""
    number = tensor.numel()
    if number < 8:
        return True
    error = _DEVIATIONS * math.sqrt((kurtosis - 1.0) / number)
    is_centred = abs(float(tensor.mean())) <= _DEVIATIONS * math.sqrt(variance / number)
    return is_centred and abs(float(tensor.square().mean()) / variance - 1.0) <= error


def _is_untied(left: dict[str, torch.Tensor], inquiry: Inquiry) -> bool:
    """Say whether what is left has no more in common with the update than chance gives."""
    simulated = {name: inquiry.plain.delta[name] for name in left}
    lengths = math.sqrt(energy(left) * energy(simulated))
    number = sum(tensor.numel() for tensor in left.values())
    return not lengths or abs(inner(left, simulated)) / lengths <= _DEVIATIONS / math.sqrt(number)
