"""Epsilon of the subsampled Gaussian mechanism, composed over steps, by the accountants of Opacus."""

from functools import lru_cache
from typing import Literal

import numpy as np

Accountant = Literal["rdp", "prv"]


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
        accountant: ``"rdp"`` is an upper bound; ``"prv"`` too, and within 0.01 of the true value.

    References:
        Mironov, Talwar, Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019 (rdp).
        Gopi, Lee, Wutschitz, Numerical Composition of Differential Privacy, NeurIPS 2021 (prv).
    """
    from opacus.accountants import create_accountant  # seconds to import: only who uses it waits for it

    account = create_accountant(accountant)
    account.history = [(noise_multiplier, sampling_rate, num_steps)]
    with np.errstate(divide="ignore"):  # "prv" takes log(1 - q), which is -inf and right for q = 1
        return float(account.get_epsilon(delta))
