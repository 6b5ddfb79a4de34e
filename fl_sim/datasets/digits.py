"""Handwritten digits of 8x8 pixels that ship with scikit-learn: the data set that works everywhere, at once."""

from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl_sim.datasets.channel_statistics import channel_statistics
from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.hold_out import with_held_out_test_set
from fl_sim.records import DatasetSpec

_LARGEST_SIZE = 512  # two gigabytes of numbers on the way
_HIGHEST_LEVEL = 16


def digits(*, size: int = 28, test_fraction: float = 0.2) -> Dataset:
    """Load 1797 grey digits, bright strokes on black, enlarged bilinearly.

    Args:
        size: Height and width in pixels, 1 to 512; 8 keeps the images as they are.
        test_fraction: Share of every class that is held out for the central test set, in [0, 1).

    Returns:
        Ten classes; mean and standard deviation are those of the enlarged images.

    Raises:
        ValueError: If ``size`` is out of range.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    if not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(f"size must be from 1 to {_LARGEST_SIZE}, got {size}")
    levels, labels = _load()
    resized = functional.interpolate(levels.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)
    images = (resized * (255 / _HIGHEST_LEVEL)).round().to(torch.uint8)
    mean, std = channel_statistics(images)
    spec = DatasetSpec(
        image_shape=(1, size, size),
        num_classes=10,
        mean=mean,
        std=std,
        class_names=tuple(str(digit) for digit in range(10)),
    )
    return with_held_out_test_set(name="digits", images=images, labels=labels, spec=spec, test_fraction=test_fraction)


def _load() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # half a second that no other data set has to pay

    source = cast("dict[str, np.ndarray]", load_digits())
    return torch.from_numpy(source["images"]).float(), torch.from_numpy(source["target"]).long()
