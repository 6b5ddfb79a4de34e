"""Which images of a reconstruction are in doubt, told from the update alone.

    d_i = share of h_i outside the span of the update / share of h_i outside the span of the other images' features

An image that the client holds has features of its own, and the update tells them: d_i is small. Of a copy or a mixture
of others nothing is its own, and what a wrong image has of its own is not in the update: d_i comes near 1. Figures:
benchmarks/order_noise.py (true and planted images), benchmarks/image_doubt.py (reconstructions).
"""

import torch
from torch import Tensor

from attacker.priors.feature_volume import own_shares


def doubts(features: Tensor, *, basis: Tensor) -> Tensor:
    """Return d (N,), float64, > 0.

    Args:
        features: (N, F), h_i, at the global weights.
        basis: (F, R), orthonormal columns: the span of the update, see `attacker.priors.feature_span.update_span`.
    """
    return _outside(features, basis) / own_shares(features)


def less_doubtful(first: Tensor, second: Tensor, *, basis: Tensor, floor: float) -> Tensor:
    """Choose among two versions of each image the one that leaves less doubt, (N,), bool: where it is the first.

    Greedy, from the second one of all: whatever lowers sum_i log max(d_i, floor) is taken back. Images are not judged
    one by one, as what an image has of its own depends on the others.

    Args:
        first: (N, F), the features of one version.
        second: (N, F), those of the other.
        basis: As for `doubts`.
        floor: A doubt below that is none.
    """
    versions, outside = torch.stack([second, first]), torch.stack([_outside(second, basis), _outside(first, basis)])
    every = torch.arange(len(second), device=second.device)

    def energy(chosen: Tensor) -> float:
        doubt = outside[chosen, every] / own_shares(versions[chosen, every])
        return doubt.clamp_min(floor).log().sum().item()

    chosen = torch.zeros(len(second), dtype=torch.long, device=second.device)
    lowest = energy(chosen)
    candidates = (first - second).square().sum(dim=1).argsort(descending=True).tolist()
    has_changed = True
    while has_changed:
        has_changed = False
        for image in [image for image in candidates if not chosen[image]]:
            trial = chosen.clone()
            trial[image] = 1
            if (found := energy(trial)) < lowest:
                chosen, lowest, has_changed = trial, found, True
    return chosen.bool()


def _outside(features: Tensor, basis: Tensor) -> Tensor:
    # In double precision, and as a difference: what is outside may be a thousandth of a thousandth.
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    within = basis.to(unit.dtype)
    return (unit - (unit @ within) @ within.T).square().sum(dim=1)
