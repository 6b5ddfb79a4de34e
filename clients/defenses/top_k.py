"""Top-k sparsification: only the largest entries of the communicated update leave the client."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.defenses.pruning import keep_largest
from fl_sim.parameters import num_scalars


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Keeps the given share of all entries, those of the largest magnitude over all tensors; the others become zero.

    It is magnitude pruning counted from the other end, at strengths that are named by what stays. What is left out is
    not fed back into the next round.

    Attributes:
        share: Of the whole update, in (0, 1]; rounded to entries, one at least. 1 keeps the update as it is.

    References:
        Aji and Heafield, Sparse Communication for Distributed Gradient Descent, EMNLP 2017.
        Lin et al., Deep Gradient Compression, ICLR 2018.
    """

    share: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update with all but its largest entries at zero."""
        return keep_largest(update, max(1, round(self.share * num_scalars(update))))
