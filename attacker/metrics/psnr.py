"""Peak signal-to-noise ratio at data range 1.

    PSNR = -10 log10(MSE)   in dB

Reconstructions are clipped to [0, 1] first, and a value that is not finite counts as black: no pixel of a picture lies
outside. Equal images have an infinite PSNR; it is reported as `PSNR_CAP_DB`, so that means and JSON stay finite.
"""

import torch
from torch import Tensor

PSNR_CAP_DB = 100.0
"""The highest reported value, reached at a mean squared error of 1e-10."""


def to_pixels(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1] on the CPU; NaN and infinities become black."""
    return images.detach().cpu().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(0.0, 1.0)


def psnr_db(images: Tensor, references: Tensor) -> Tensor:
    """Compare images one by one.

    Args:
        images: (N, C, H, W), the reconstructions.
        references: (N, C, H, W), in [0, 1].

    Returns:
        (N,), dB, at most `PSNR_CAP_DB`.

    Raises:
        ValueError: If the shapes differ.
    """
    if images.shape != references.shape:
        raise ValueError(f"images must have the references' shape {tuple(references.shape)}, got {tuple(images.shape)}")
    return _to_decibel((to_pixels(images) - to_pixels(references)).square().flatten(1).double().mean(dim=1))


def pairwise_psnr_db(references: Tensor, images: Tensor) -> Tensor:
    """Compare each reference with each image.

    Args:
        references: (N, C, H, W), in [0, 1].
        images: (M, C, H, W), the reconstructions.

    Returns:
        (N, M), dB, at most `PSNR_CAP_DB`.

    Raises:
        ValueError: If the shapes of one image differ.
    """
    if images.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"one image must have the references' shape {tuple(references.shape[1:])}, got {tuple(images.shape[1:])}"
        )
    if not references.shape[0] or not images.shape[0]:
        return torch.zeros(references.shape[0], images.shape[0], dtype=torch.float64)
    candidates = to_pixels(images)
    # Row by row: all N x M differences of ImageNet-sized pictures at once would take gigabytes.
    errors = [(candidates - row).square().flatten(1).double().mean(dim=1) for row in to_pixels(references)]
    return _to_decibel(torch.stack(errors))


def _to_decibel(mean_squared_error: Tensor) -> Tensor:
    return -10.0 * torch.log10(mean_squared_error.clamp_min(10.0 ** (-PSNR_CAP_DB / 10.0)))
