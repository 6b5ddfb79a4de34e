"""What a data set is: grey or colour images as bytes, integer labels, public facts and a central test set.

Bytes are what a camera or a scanner writes; models and attacks work on ``pixels(images) = images / 255`` in [0, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.records import DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Images to be divided among clients, and a central test set that no client holds.

    Attributes:
        name: How it is called in messages.
        images: (N, C, H, W), uint8.
        labels: (N,), int64, in [0, K).
        spec: Public facts.
        clients: (N,), int64, the natural client of each image, where the source has such; ids start at 0.
        test_images: (M, C, H, W), uint8, M >= 1.
        test_labels: (M,), int64.
    """

    name: str
    images: Tensor
    labels: Tensor
    spec: DatasetSpec
    clients: Tensor | None = None
    test_images: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        """Check shapes, types and ranges, so that a data set of one's own fails here and not in the middle of a run.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        _check_images(f"{self.name}: images", self.images, self.spec)
        _check_labels(f"{self.name}: labels", self.labels, len(self.images), self.spec)
        _check_images(f"{self.name}: test_images", self.test_images, self.spec)
        _check_labels(f"{self.name}: test_labels", self.test_labels, len(self.test_images), self.spec)
        if self.clients is not None and (self.clients.dtype, self.clients.shape) != (torch.int64, self.labels.shape):
            raise ValueError(
                f"{self.name}: clients: expected int64 of shape {tuple(self.labels.shape)}, "
                f"got {self.clients.dtype} of shape {tuple(self.clients.shape)}"
            )
        for field_name in ("mean", "std"):
            values = getattr(self.spec, field_name)
            if len(values) != self.spec.image_shape[0]:
                raise ValueError(
                    f"{self.name}: spec.{field_name}: expected one value for each of "
                    f"{self.spec.image_shape[0]} channels, got {len(values)}"
                )
        if min(self.spec.std) <= 0:
            raise ValueError(f"{self.name}: spec.std must be > 0, got {self.spec.std}")


def pixels(images: Tensor) -> Tensor:
    """Turn bytes into pixel units.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of the same shape, in [0, 1].

    Raises:
        ValueError: If the images are not uint8; dividing pixels by 255 twice would go unnoticed.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}; pixels in [0, 1] need no conversion")
    return images.to(torch.float32) / 255


def _check_images(name: str, images: Tensor, spec: DatasetSpec) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != spec.image_shape:
        raise ValueError(
            f"{name}: expected uint8 of shape (N, {', '.join(map(str, spec.image_shape))}), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if len(images) == 0:
        raise ValueError(f"{name}: expected at least one image, got none")


def _check_labels(name: str, labels: Tensor, num_images: int, spec: DatasetSpec) -> None:
    if labels.dtype != torch.int64 or tuple(labels.shape) != (num_images,):
        raise ValueError(
            f"{name}: expected int64 of shape ({num_images},), got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= spec.num_classes:
        raise ValueError(f"{name}: expected values in [0, {spec.num_classes}), got {lowest} to {highest}")
