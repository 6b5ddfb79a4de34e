"""Anisotropic total variation: neighbouring pixels of a picture are mostly equal."""

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of vertical neighbours plus that of horizontal ones.

    Zero for constant images. Keeps edges, where `quadratic_variation` blurs them.

    Args:
        images: (..., C, H, W); the mean runs over all images, channels and pairs of neighbours.

    Returns:
        Shape (), >= 0, in the unit of the images.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, Eq. 4.
        Rudin et al., Nonlinear total variation based noise removal algorithms, Physica D 60, 1992.
    """
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs()
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs()
    # Sums over max(count, 1), so that an image of a single row or column has no variation along it.
    return vertical.sum() / max(vertical.numel(), 1) + horizontal.sum() / max(horizontal.numel(), 1)
