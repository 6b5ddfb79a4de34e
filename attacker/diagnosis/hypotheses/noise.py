"""What is left is white: alike in every tensor, without a tie to the update, with the tails of a known distribution."""

import math

import torch

from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.residual import difference, energy, inner, least_squares_factor

_FEWEST_ENTRIES = 100
_DEVIATIONS = 6.0
"""Standard errors by which a statistic of white noise may miss its mean; tensors are many."""
_KURTOSIS = {"Gaussian": 3.0, "Laplace": 6.0}


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
    """Return the distribution whose kurtosis the entries have, if every tensor has the same variance."""
    entries = torch.cat([tensor.flatten() for tensor in left.values()])
    number, variance = len(entries), float(entries.square().mean())
    if number < _FEWEST_ENTRIES or variance == 0.0:
        return None
    kurtosis = float(entries.pow(4).mean()) / variance**2
    for kind, expected in _KURTOSIS.items():
        # The kurtosis of a sample of Laplace noise scatters far more: its eighth moment is large.
        error = math.sqrt((24.0 if kind == "Gaussian" else 1100.0) / number)
        if abs(kurtosis - expected) > _DEVIATIONS * error or (kind == "Gaussian" and kurtosis > 4.5):
            continue
        if all(_fits(tensor, variance, expected) for tensor in left.values()):
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
