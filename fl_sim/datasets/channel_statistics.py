"""Mean and standard deviation of each channel, from exact counts of the 256 grey levels."""

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the constants of the model's normalisation.

    Args:
        images: (N, C, H, W), uint8.

    Returns:
        Mean and standard deviation of each channel in pixel units [0, 1], each of length C. The standard deviation is
        at least one grey level, so that a constant channel does not divide by zero.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means: list[float] = []
    stds: list[float] = []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).to(torch.float64)
        shares = counts / counts.sum()
        mean = (shares * levels).sum()
        variance = (shares * (levels - mean).square()).sum()
        means.append(float(mean))
        stds.append(max(float(variance.sqrt()), 1 / 255))
    return tuple(means), tuple(stds)
