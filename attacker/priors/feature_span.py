"""Features of the private images lie in the row space of the first fully connected layer's update.

    dW = sum over steps and images of  delta_i h_i^T    =>    h_i in span(V),  V = leading right singular vectors of dW

The sum has at most as many directions as images, up to the drift of the features during local training. The plain
distance between updates hardly sees the small singular values, though each of them separates images.
"""

import torch
from torch import Tensor


def feature_span(features: Tensor, *, basis: Tensor) -> Tensor:
    """Return the share of the features' energy outside the span: mean_i ||(I - V V^T) h_i||^2 / ||h_i||^2.

    Needs no label and no order. It weakens as N approaches the number of hidden units (the span fills up), and noise on
    the update drowns the small directions.

    Args:
        features: (N, F), h_i: the inputs of the first fully connected layer, at the global weights.
        basis: (F, R), V: orthonormal columns, see `update_span`.

    Returns:
        Shape (), in [0, 1].

    References:
        This project; the rank-one structure is that of Phong et al., Privacy-Preserving Deep Learning via Additively
        Homomorphic Encryption, IEEE TIFS 2018, Sec. III, and Geiping et al., Inverting Gradients, NeurIPS 2020, Prop.
        3.1.
    """
    energy = features.square().sum(dim=1)
    inside = (features @ basis).square().sum(dim=1)
    # Pythagoras: V is orthonormal, so that the residual needs no (N, F) difference.
    return ((energy - inside) / energy.clamp_min(torch.finfo(energy.dtype).tiny)).mean()


def visible_rank(weight_update: Tensor, noise_stddev: float) -> int:
    """Return how many singular values of a noisy matrix stand out from those of its noise.

    The largest singular value of an (H, F) matrix of independent noise is about sigma (sqrt(H) + sqrt(F)): a direction
    below that cannot be told from noise.

    Args:
        weight_update: (H, F), what was observed.
        noise_stddev: sigma of an entry's noise; 0 leaves every direction that is there.

    References:
        Marchenko and Pastur, Math. USSR-Sbornik 1, 1967 (the edge); Gavish and Donoho, The Optimal Hard Threshold for
        Singular Values is 4/sqrt(3), IEEE Trans. Inf. Theory 60, 2014.
    """
    values = torch.linalg.svdvals(weight_update.double().nan_to_num(0.0, 0.0, 0.0))
    height, width = weight_update.shape
    return int((values > noise_stddev * (height**0.5 + width**0.5)).sum())


def update_span(weight_update: Tensor, rank: int) -> Tensor:
    """Return V (F, R), the leading right singular vectors of a weight matrix's update.

    Args:
        weight_update: (H, F), update or mean gradient of the first fully connected layer's weight; entries that are not
            finite count as 0.
        rank: R, the number of directions, >= 1; at most min(H, F) are returned.

    Raises:
        ValueError: If the rank is below 1.

    References:
        As `feature_span`.
    """
    if rank < 1:
        raise ValueError(f"rank must be >= 1, got {rank}")
    # In double precision: the directions of small singular values are the ones that matter here.
    right = torch.linalg.svd(weight_update.double().nan_to_num(0.0, 0.0, 0.0), full_matrices=False).Vh
    return right[:rank].T.to(weight_update.dtype).contiguous()
