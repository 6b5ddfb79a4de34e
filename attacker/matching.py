"""Which reconstruction belongs to which private image: an update does not tell the order of a batch."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.metrics.psnr import pairwise_psnr_db

UNMATCHED = -1


def match(references: Tensor, images: Tensor) -> Tensor:
    """Assign images to references, one to one, so that the total PSNR is highest.

    Args:
        references: (N, C, H, W), in [0, 1].
        images: (M, C, H, W).

    Returns:
        (N,), int64: the index of the image assigned to each reference. If M < N, N - M references have `UNMATCHED`.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Section 5 (assignment over the whole batch).
    """
    rows, columns = linear_sum_assignment(pairwise_psnr_db(references, images).numpy(), maximize=True)
    matching = torch.full((references.shape[0],), UNMATCHED, dtype=torch.int64)
    matching[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return matching


def match_and_average(images_by_epoch: Tensor) -> Tensor:
    """Undo the unknown order of each epoch and average what is one image.

    The images of each later epoch are assigned to those of the first one, one to one, and the mean over epochs is
    taken.

    Args:
        images_by_epoch: (E, N, C, H, W), pixel units; values outside [0, 1] are clipped for the assignment only.

    Returns:
        (N, C, H, W), in the order of the first epoch.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 4.4 (matching and averaging).
    """
    first = images_by_epoch[0]
    return torch.stack([first, *(epoch[match(first, epoch)] for epoch in images_by_epoch[1:])]).mean(dim=0)
