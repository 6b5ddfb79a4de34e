"""Quadratic smoothness with wrap-around: what the released FedAvg-leakage code calls total variation."""

from torch import Tensor


def quadratic_variation(images: Tensor) -> Tensor:
    """Return, for each image, the sum of squared differences of neighbours, and the mean of that over images.

        mean over images of sum over c, i, j of (x[c, i+1, j] - x[c, i, j])^2 + (x[c, i, j+1] - x[c, i, j])^2

    The last row is a neighbour of the first one, and the last column of the first one. The released code adds 1e-7 to
    each term; a constant has no gradient and is left out, so that constant images give zero.

    Args:
        images: (..., C, H, W).

    Returns:
        Shape (), >= 0, in squared units of the images.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, released code; the paper speaks of total
        variation (Sec. 5.1).
    """
    vertical = (images.roll(-1, dims=-2) - images).square()
    horizontal = (images.roll(-1, dims=-1) - images).square()
    return (vertical + horizontal).sum(dim=(-3, -2, -1)).mean()
