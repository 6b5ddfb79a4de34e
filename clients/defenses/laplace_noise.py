"""Laplace noise on the communicated update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.defenses.defense import Defense


@dataclass(frozen=True, slots=True, kw_only=True)
class LaplaceNoise:
    """Adds Laplace(0, scale), drawn independently for each entry; its standard deviation is ``sqrt(2) * scale``.

    Attributes:
        scale: Scale in the units of the update, >= 0.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Appendix C.1 (on each example's gradient).
    """

    scale: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a number >= 0, got {self.scale}")

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update plus noise."""
        return self.on_mean(1)(update, num_examples=num_examples, generator=generator)

    def on_mean(self, count: int) -> Defense:
        """See `AdditiveNoise`."""

        def add(update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator) -> Mapping[str, Tensor]:
            if self.scale == 0:
                return update
            unit = self.scale / count
            return {name: tensor + unit * _sum_of_laplace(tensor, count, generator) for name, tensor in update.items()}

        return add


def _sum_of_laplace(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw the sum of ``count`` values of Laplace(0, 1) for each entry.

    One of them is a normal with a variance of 2 Exp(1), so that their sum is one whose variances add up.

    References:
        Kotz, Kozubowski and Podgorski, The Laplace Distribution and Generalizations, 2001, Sec. 2.2.
    """
    exponentials = torch.zeros_like(like)
    for _ in range(count):  # by inversion, half of the time of `exponential_`; 1 - u is never zero
        exponentials -= torch.log1p(-torch.rand(like.shape, generator=generator, dtype=like.dtype))
    return (2 * exponentials).sqrt_() * torch.randn(like.shape, generator=generator, dtype=like.dtype)
