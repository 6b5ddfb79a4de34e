"""Spearman's rank correlation over clients, with a p-value that is right for few of them.

    rho = Pearson correlation of the ranks,       p = twice the share of permutations whose rho is as far out

For up to seven clients all permutations are gone through, else 9999 random ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, rankdata, spearmanr

_NUM_PERMUTATIONS = 9999
_FEWEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """How two numbers go together over clients.

    Attributes:
        rho: In [-1, 1].
        p_value: Two-sided, for no association, by permutation; not corrected for how many pairs are looked at.
        number: Clients.
    """

    rho: float
    p_value: float
    number: int


def rank_correlation(first: Sequence[float | None], second: Sequence[float | None]) -> RankCorrelation | None:
    """Return the rank correlation of pairs of which both are known.

    Returns:
        ``None`` for fewer than three pairs, or where one side is the same for all.

    References:
        Spearman, The Proof and Measurement of Association between Two Things, Am. J. Psychology 15, 1904.
    """
    pairs = [(x, y) for x, y in zip(first, second, strict=True) if x is not None and y is not None]
    if len(pairs) < _FEWEST or len({x for x, _ in pairs}) == 1 or len({y for _, y in pairs}) == 1:
        return None
    x, y = (np.asarray(values, dtype=np.float64) for values in zip(*pairs, strict=True))
    rho = np.asarray(spearmanr(x, y))[0]
    ranks = rankdata(y)

    def statistic(permuted: np.ndarray, axis: int) -> np.ndarray:
        # Of ranks, the Pearson correlation is a sum of products up to constants that no permutation changes.
        own = rankdata(permuted, axis=axis)
        return ((own - own.mean(axis=axis, keepdims=True)) * (ranks - ranks.mean())).sum(axis=axis)

    found = permutation_test(
        (x,),
        statistic,
        permutation_type="pairings",
        n_resamples=math.factorial(len(pairs)) if len(pairs) <= 7 else _NUM_PERMUTATIONS,
        vectorized=True,
        alternative="two-sided",
        rng=np.random.default_rng(0),
    )
    return RankCorrelation(rho=float(rho), p_value=float(found.pvalue), number=len(pairs))
