"""The first layer of every model: ``(pixels - mean) / std``, so that all else may speak of pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalisation(nn.Module):
    """Normalises each channel by public constants.

    The constants are no parameters and not part of the state: they are neither trained, sent, averaged nor attacked.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the constants, in pixel units, one for each channel."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (N, C, H, W), pixels in [0, 1].

        Returns:
            The same shape; mean 0 and variance 1 over the data set.
        """
        return (images - self.mean) / self.std
