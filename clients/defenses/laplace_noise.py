"""Laplace noise on the communicated update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


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
        if self.scale == 0:
            return update
        return {name: tensor + self.scale * _laplace(tensor, generator) for name, tensor in update.items()}


def _laplace(like: Tensor, generator: torch.Generator) -> Tensor:
    # A sign, and an Exp(1) magnitude by inversion, from one uniform draw: less than half of the time of `exponential_`.
    # Its resolution cuts the tail at 23 log 2, where one draw in eight million lies.
    doubled = 2 * torch.rand(like.shape, generator=generator, dtype=like.dtype)
    is_negative = doubled >= 1
    magnitude = -torch.log1p(is_negative.to(like.dtype) - doubled)
    return torch.where(is_negative, -magnitude, magnitude)
