"""Every epoch visits the same images, in whatever order.

mean over pairs of epochs (e, f) of  || g(X_e) - g(X_f) ||,   g unaware of the order within an epoch
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Aggregate: TypeAlias = Literal["mean", "max"]
Norm: TypeAlias = Literal["l1", "l2"]

NUM_FILTERS = 96

_AGGREGATES: dict[Aggregate, Callable[[Tensor], Tensor]] = {
    "mean": lambda images: images.mean(dim=1),
    "max": lambda images: images.amax(dim=1),
}
_NORMS: dict[Norm, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


def epoch_order(
    images: Tensor, *, aggregate: Aggregate = "mean", norm: Norm = "l2", filters: Tensor | None = None
) -> Tensor:
    """Return how much the epochs' sets of images differ in a statistic that no reordering changes.

    Args:
        images: (E, N, C, H, W), one set of images for each epoch.
        aggregate: g over the N images of an epoch.
        norm: Absolute (l1) or squared (l2) difference; its mean over pixels and channels (or filters) is taken.
        filters: (F, C, 3, 3), applied to each image before g, keeping its size; ``None`` compares pixels.

    Returns:
        Shape (), >= 0: the mean over all E^2 ordered pairs of epochs, pairs of an epoch with itself included, as in the
        released code.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 4.4 and Table 4.
    """
    features = images if filters is None else _filtered(images, filters)
    statistics = _AGGREGATES[aggregate](features)
    return _NORMS[norm](statistics.unsqueeze(0) - statistics.unsqueeze(1)).mean()


def random_filters(num_channels: int, generator: torch.Generator) -> Tensor:
    """Draw the random convolution of the ``conv`` variants: LeCun-normal, shape (96, C, 3, 3), on the CPU.

    Args:
        num_channels: C.
        generator: The source of the weights.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 4.4 (g on random features).
    """
    std = 1.0 / math.sqrt(9 * num_channels)
    return torch.randn(NUM_FILTERS, num_channels, 3, 3, generator=generator) * std


def _filtered(images: Tensor, filters: Tensor) -> Tensor:
    return functional.conv2d(images.flatten(0, 1), filters, padding=1).unflatten(0, images.shape[:2])
