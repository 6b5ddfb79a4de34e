"""Contrast that an update does not tell, taken from what pictures are like: they use the whole range of brightness.

Layers with ReLU, biases at zero (as at initialisation) and no normalisation pass a factor on: h(c z) = c h(z). The
subspace that features lie in says nothing of an image's contrast then, and the matching little: an image of more
contrast is learnt sooner, and its gradients fade. Smoothness and the bounds of the pixels pull it down.
"""

import torch
from torch import Tensor


def full_contrast(pixels: Tensor, mean: Tensor, *, share: float) -> Tensor:
    """Raise the contrast of each image around the data set's mean until some of its values reach the bounds 0 and 1.

    No contrast is lowered.

    Args:
        pixels: (N, C, H, W).
        mean: (C, 1, 1), public, in pixel units, inside of (0, 1).
        share: Of an image's values, those that may lie beyond the bounds, in [0, 1).

    Returns:
        (N, C, H, W), not clipped.
    """
    away = pixels - mean
    # The factor at which each value reaches the bound that it points at.
    room = torch.where(away > 0, 1 - mean, mean)
    factors = (room / away.abs()).flatten(1).sort(dim=1).values[:, int(share * away[0].numel())]
    # An image at the mean everywhere has no contrast to raise.
    return mean + factors.nan_to_num(posinf=1.0).clamp_min(1.0)[:, None, None, None] * away
