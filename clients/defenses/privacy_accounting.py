"""Epsilon of the subsampled Gaussian mechanism, composed over steps, by the accountants of Opacus."""

import warnings
from functools import lru_cache
from typing import Literal

import numpy as np

Accountant = Literal["rdp", "prv"]

_LARGEST_NUMERICAL = 100.0


@lru_cache(maxsize=1024)
def epsilon_of(
    *, noise_multiplier: float, sampling_rate: float, num_steps: int, delta: float, accountant: Accountant
) -> float:
    """Return epsilon at ``delta`` after a number of steps.

    Args:
        noise_multiplier: sigma > 0, the noise's standard deviation over the clipping norm.
        sampling_rate: q in (0, 1], the probability of an example to be in a step's batch, independently (Poisson
            sampling); 1 for a Gaussian mechanism without sampling.
        num_steps: Steps, >= 1.
        delta: In (0, 1).
        accountant: ``"rdp"`` is an upper bound, and so is ``"prv"``, which comes within 0.02 of the true value. Beyond
            100, where epsilon promises nothing and its grid outgrows the memory, it returns what ``"rdp"`` does.

    References:
        Mironov, Talwar, Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019 (rdp).
        Gopi, Lee, Wutschitz, Numerical Composition of Differential Privacy, NeurIPS 2021 (prv).
    """
    history = [(noise_multiplier, sampling_rate, num_steps)]
    bound = _epsilon("rdp", history, delta)
    if accountant == "rdp" or bound > _LARGEST_NUMERICAL:
        return bound
    return min(bound, _epsilon("prv", history, delta))


def _epsilon(accountant: Accountant, history: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import create_accountant  # seconds to import: only who uses it waits for it

    account = create_accountant(accountant)
    account.history = history
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore"):  # log(1 - q) is -inf for q = 1
        warnings.filterwarnings("ignore", message="Optimal order is the")  # the bound holds, another might be tighter
        return float(account.get_epsilon(delta))
