"""Pruning of the communicated update: entries are set to zero, at random or the smallest first."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.parameters import flatten, num_scalars


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPruning:
    """Sets each entry to zero with the given probability; what stays is not rescaled.

    Attributes:
        probability: In [0, 1), taken to 16 bits.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Appendix C.1 (of each example's gradient).
    """

    probability: float

    def __post_init__(self) -> None:
        """Check the range."""
        _check_share("probability", self.probability)

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update with random entries at zero."""
        if self.probability == 0:
            return update
        return {
            name: tensor * _draw_kept(tensor.numel(), self.probability, generator).view(tensor.shape)
            for name, tensor in update.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MagnitudePruning:
    """Sets the given share of all entries to zero, those of the smallest magnitude over all tensors.

    Attributes:
        share: In [0, 1).

    References:
        Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Section 5.2 (gradient pruning).
    """

    share: float

    def __post_init__(self) -> None:
        """Check the range."""
        _check_share("share", self.share)

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update with its smallest entries at zero."""
        total = num_scalars(update)
        return keep_largest(update, total - round(self.share * total))


def keep_largest(update: Mapping[str, Tensor], num_kept: int) -> Mapping[str, Tensor]:
    """Set all entries but those of the largest magnitude to zero.

    Args:
        update: Named tensors. Not changed.
        num_kept: How many entries stay, over all tensors together; where all do, ``update`` itself is returned.
    """
    magnitudes = flatten(update).abs()
    num_pruned = magnitudes.numel() - num_kept
    if num_pruned == 0:
        return update
    # Ranks, and not a threshold: with ties the stated share would be missed.
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    keep[magnitudes.argsort(stable=True)[:num_pruned]] = False
    masks = keep.split([tensor.numel() for tensor in update.values()])
    return {name: tensor * mask.view_as(tensor) for (name, tensor), mask in zip(update.items(), masks, strict=True)}


def _draw_kept(count: int, probability: float, generator: torch.Generator) -> Tensor:
    # Sixteen bits decide an entry, so that one draw serves four: a third of the time of `torch.rand`.
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[:count] >= round(probability * 2**16) - 2**15


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
