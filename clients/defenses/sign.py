"""Only the sign of each entry leaves the client, with one magnitude for each tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Replaces each entry by its sign times the mean magnitude of its tensor; zero stays zero.

    The mean magnitude keeps the L1 norm of every tensor (where no entry is zero), so that the learning rate means the
    same with and without the defense. Biased: no error is fed back into the next round. There is no strength to set.

    References:
        Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, ICML 2018.
        Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019 (the scale).
    """

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update with two magnitudes a tensor at most: zero and one other."""
        return {name: tensor.sign() * tensor.abs().mean() for name, tensor in update.items()}
