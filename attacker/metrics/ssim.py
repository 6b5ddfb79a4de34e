"""Structural similarity with a Gaussian window, at data range 1.

The window is that of the paper, 11 x 11 with sigma = 1.5, wherever it fits. In an image whose shorter side s is below
11 it would leave no pixel, so the radius shrinks to r = (s - 1) // 2 and sigma to r / 3.5, which keeps the window's cut
at 3.5 sigma: an 8 x 8 image is measured with a 7 x 7 window. Such values compare with each other only.
"""

import torch
from torch import Tensor

from attacker.metrics.psnr import to_pixels

STANDARD_RADIUS = 5
STANDARD_SIGMA = 1.5
TRUNCATE = 3.5
"""The window is cut this many sigmas from its middle."""


def window_radius(height: int, width: int) -> int:
    """Return the radius of the window for images of this size.

    Raises:
        ValueError: If a side is below 3 pixels, where no window of radius 1 fits.
    """
    radius = min(STANDARD_RADIUS, (min(height, width) - 1) // 2)
    if radius < 1:
        raise ValueError(f"SSIM needs images of at least 3 x 3 pixels, got {height} x {width}")
    return radius


def window_sigma(radius: int) -> float:
    """Return the sigma of a window of this radius."""
    return STANDARD_SIGMA if radius == STANDARD_RADIUS else radius / TRUNCATE


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Compare images one by one.

    Args:
        images: (N, C, H, W), the reconstructions; clipped to [0, 1].
        references: (N, C, H, W), in [0, 1].

    Returns:
        (N,), each in [-1, 1], 1 for equal images; the mean over channels.

    Raises:
        ValueError: If the shapes differ or the images are smaller than 3 x 3 pixels.

    References:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, TIP 2004.
    """
    # Imported here: torchmetrics takes seconds to import, and most commands score nothing.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if images.shape != references.shape:
        raise ValueError(f"images must have the references' shape {tuple(references.shape)}, got {tuple(images.shape)}")
    if not images.shape[0]:
        return torch.zeros(0, dtype=torch.float64)
    radius = window_radius(images.shape[-2], images.shape[-1])
    _, local_similarity = structural_similarity_index_measure(
        to_pixels(images).double(),
        to_pixels(references).double(),
        sigma=window_sigma(radius),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    # Only windows that lie inside the image count, as in the paper; the library pads and averages over all.
    return local_similarity[..., radius:-radius, radius:-radius].flatten(1).mean(dim=1)
