"""From real-valued estimates of label counts to integers."""

import torch
from torch import Tensor


def round_to_sum(estimates: Tensor, total: int) -> Tensor:
    """Round to non-negative integers of a given sum by largest remainders.

    Estimates are rounded down and negative ones raised to 0. Missing labels then go, one by one, to the class that
    lacks most; surplus ones are taken from the class with labels that has most beyond its estimate.

    Args:
        estimates: (K,), real; values that are not finite count as 0.
        total: N, the sum, >= 0.

    Returns:
        (K,), int64, on the CPU, with sum N.

    Raises:
        ValueError: If ``total`` is negative or there are no classes.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 4.5, released code.
    """
    if total < 0 or not len(estimates):
        raise ValueError(f"expected total >= 0 and at least one class, got total {total} and {len(estimates)} classes")
    # Estimates beyond +-N say nothing more than +-N does, and would make the loops below long.
    wanted = estimates.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0).clamp(-total, total)
    counts = wanted.floor().clamp_min(0.0)
    while counts.sum() < total:
        counts[(wanted - counts).argmax()] += 1
    while counts.sum() > total:
        counts[torch.where(counts > 0, counts - wanted, -torch.inf).argmax()] -= 1
    return counts.long()
