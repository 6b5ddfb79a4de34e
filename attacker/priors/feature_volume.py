"""Reconstructions must not be copies or mixtures of each other: each image has features that the others do not explain.

    r_i = share of h_i outside the span of the other features = 1 / (G^-1)_ii,    G the Gram matrix of h_i / ||h_i||

Copies are where the span prior and the matching term both come to rest: a copy lies in the span, and at a label that
two images have it explains half of the update. In r_i they stand out: among the 50 characters of client 0 of
femnist_like_10k it is 0.005 at least and 0.015 in the median, and 0.003 or less for what came out as copies.
"""

import torch
from torch import Tensor


def feature_volume(features: Tensor, *, floor: float | Tensor) -> Tensor:
    """Return mean_i max(0, log(floor / r_i)): by how much features are explained by the others.

    Args:
        features: (N, F), h_i.
        floor: What an image's own share should be at least, shape (), in (0, 1], see `typical_share`.

    Returns:
        Shape (), >= 0.

    References:
        This project. The determinant of G, which diversity is weighed with by Kulesza and Taskar, Determinantal Point
        Processes for Machine Learning, 2012, Sec. 2.2, is the product of such shares, each among the images before.
    """
    return (floor / own_shares(features)).log().clamp_min(0.0).mean().to(features.dtype)


def own_shares(features: Tensor) -> Tensor:
    """Return r (N,), float64: the share of each feature vector's energy outside the span of the others.

    Args:
        features: (N, F), h_i.
    """
    # In double precision: two copies leave 1e-5 or less.
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    gram = unit @ unit.T
    jitter = 1e-9 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # Not inv, which has the host wait for the device to say whether there is an inverse; the jitter sees to that.
    return 1 / torch.linalg.inv_ex(gram + jitter).inverse.diagonal()


def typical_share(features: Tensor) -> Tensor:
    """Return the median of r, float64 of shape (), that no gradient flows through.

    Of an even number the upper one: a pair of copies among four images is not what is typical.

    Args:
        features: (N, F), h_i.
    """
    return own_shares(features.detach()).sort().values[len(features) // 2]
