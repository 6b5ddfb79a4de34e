"""Gaussian noise on the communicated update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Adds N(0, stddev^2), drawn independently for each entry.

    Without clipping this is no differential privacy; it is the defense that the attack papers test.

    Attributes:
        stddev: Standard deviation in the units of the update, >= 0.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Appendix C.1 (on each example's gradient).
    """

    stddev: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.stddev < math.inf:
            raise ValueError(f"stddev must be a number >= 0, got {self.stddev}")

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update plus noise."""
        if self.stddev == 0:
            return update
        return {
            name: tensor + self.stddev * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            for name, tensor in update.items()
        }

    def on_mean(self, count: int) -> "GaussianNoise":
        """See `AdditiveNoise`."""
        return GaussianNoise(stddev=self.stddev / math.sqrt(count))
