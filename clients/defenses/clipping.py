"""Clipping of the communicated update to a maximal length."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.parameters import l2_norm, scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """Scales the whole update down to ``clip_norm`` where it is longer.

    Attributes:
        clip_norm: Largest L2 norm over all tensors together, > 0; infinity leaves every update as it is.

    References:
        McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, Section 2 (flat clipping).
    """

    clip_norm: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {self.clip_norm}")

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update, no longer than ``clip_norm``."""
        norm = l2_norm(update)
        if norm <= self.clip_norm:
            return update
        return scale(update, self.clip_norm / norm)
