"""A pixel lies in [0, 1]."""

from torch import Tensor


def pixel_box(pixels: Tensor) -> Tensor:
    """Return, for each image, the squared distance to the box [0, 1], and the mean of that over images.

    Args:
        pixels: (..., C, H, W), in pixel units, in which a picture lies in [0, 1].

    Returns:
        Shape (), >= 0; zero for pictures.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 5.1 (the clipping term).
    """
    return (pixels - pixels.clamp(0.0, 1.0)).square().sum(dim=(-3, -2, -1)).mean()
