"""What about a client's data might explain how much of it leaks: numbers that only the truth knows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.metrics.psnr import pairwise_psnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTraits:
    """A client's private images, as numbers.

    Attributes:
        num_examples: N_c.
        num_labels: Classes of which the client holds an image.
        label_entropy_bits: Of its label distribution, in bits: 0 for one class, log2 K for all alike; low is skewed.
        nearest_image_db: Mean over its images of the PSNR to the most similar other one; ``None`` for a single image.
        near_duplicate_share: Share of its images to which another one is closer than the threshold above which an
            image counts as recovered, in [0, 1].
        contrast: Mean over its images of the standard deviation of their pixels: flat images are easy to get right.
    """

    num_examples: int
    num_labels: int
    label_entropy_bits: float
    nearest_image_db: float | None
    near_duplicate_share: float
    contrast: float

    def named(self) -> Mapping[str, float | None]:
        """Return the traits by what the tables call them."""
        return {
            "images (N_c)": float(self.num_examples),
            "distinct labels": float(self.num_labels),
            "label entropy, bits": self.label_entropy_bits,
            "nearest own image, dB": self.nearest_image_db,
            "near-duplicates": self.near_duplicate_share,
            "contrast": self.contrast,
        }


def data_traits(images: Tensor, labels: Tensor, *, num_classes: int, threshold_db: float) -> DataTraits:
    """Describe a client's private images.

    Args:
        images: (N, C, H, W), pixels in [0, 1], N >= 1.
        labels: (N,), int64.
        num_classes: K.
        threshold_db: Two images closer than this PSNR count as near-duplicates.

    Raises:
        ValueError: If there are no images.
    """
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    counts = torch.bincount(labels, minlength=num_classes)
    shares = counts[counts > 0] / len(labels)
    nearest = _nearest_db(images)
    return DataTraits(
        num_examples=len(images),
        num_labels=int((counts > 0).sum()),
        label_entropy_bits=max(0.0, float(-(shares * shares.log2()).sum())),
        nearest_image_db=None if nearest is None else float(nearest.mean()),
        near_duplicate_share=0.0 if nearest is None else float((nearest > threshold_db).double().mean()),
        contrast=float(images.flatten(1).std(dim=1, correction=0).mean()),
    )


def _nearest_db(images: Tensor) -> Tensor | None:
    """Return the PSNR of each image to the most similar other one, (N,); ``None`` for a single image."""
    if len(images) < 2:
        return None
    return pairwise_psnr_db(images, images).fill_diagonal_(-torch.inf).amax(dim=1)
