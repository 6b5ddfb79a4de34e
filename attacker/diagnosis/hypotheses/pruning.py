"""Entries that are exactly zero, where the replay has a gradient."""

import torch

from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.residual import least_squares_factor, relative_residual

_LEAST_SHARE = 0.01


def pruning(inquiry: Inquiry) -> list[Finding]:
    """Find pruning, at random or of the smallest entries, and whether what stays is scaled up."""
    told, zero, magnitudes = _entries(inquiry)
    pruned = told & zero
    share = float(pruned.sum() / told.sum().clamp_min(1))
    if share < _LEAST_SHARE or share == 1.0:
        return []
    kept = {name: inquiry.plain.delta[name] * (tensor != 0) for name, tensor in inquiry.delta.items()}
    factor = least_squares_factor(kept, inquiry.delta)
    scaled = {name: factor * tensor for name, tensor in kept.items()}
    plain, rescaled = relative_residual(kept, inquiry.delta), relative_residual(scaled, inquiry.delta)
    is_rescaled = rescaled < 0.1 * plain and inquiry.evidence(plain) is not Evidence.EXACT
    border = float(magnitudes[pruned].amax())
    # A few entries lie on the wrong side of the border, because training was rounded.
    is_smallest = float((magnitudes[told & ~zero] < 0.99 * border).double().mean()) < 1e-3
    which = "the smallest entries (pruning by magnitude, or top-k)" if is_smallest else "entries all over"
    rest = f"; the others are multiplied by {factor:.4g}" if is_rescaled else ""
    residual = rescaled if is_rescaled else plain
    return [
        Finding(
            cause="pruning",
            detail=f"{which}, {share:.1%} of those that the replay moves, are exactly zero{rest}",
            residual=residual,
            evidence=inquiry.evidence(residual),
            num_fitted=int(is_rescaled),
        )
    ]


def _entries(inquiry: Inquiry) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, entry by entry, whether it would not be zero by itself, whether it is, and its replayed magnitude."""
    trained = [name for name, tensor in inquiry.delta.items() if tensor.any()]
    if not trained:
        return torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool), torch.zeros(1)
    magnitudes = torch.cat([inquiry.plain.delta[name].abs().flatten() for name in trained])
    rounding = torch.cat([inquiry.roundings(name).flatten() for name in trained])
    zero = torch.cat([(inquiry.delta[name] == 0).flatten() for name in trained])
    return magnitudes > 4.0 * rounding, zero, magnitudes
