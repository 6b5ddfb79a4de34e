"""LEAF's files: JSON with ``users`` and, for each of them, ``user_data`` of flattened images ``x`` and labels ``y``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_sim.errors import ConfigError, MissingDataError


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterImages:
    """Images by writer, writer after writer.

    Attributes:
        images: (N, 1, H, W), uint8.
        labels: (N,), int64.
        writers: (N,), int64, counted from 0.
    """

    images: Tensor
    labels: Tensor
    writers: Tensor


def read_leaf_folder(folder: Path, *, image_size: int, max_writers: int | None) -> WriterImages:
    """Read all ``*.json`` of a folder, by file name; writers are numbered in the order in which they are met.

    Args:
        folder: The folder.
        image_size: Height and width of an image in pixels.
        max_writers: Stops after that many writers.

    Raises:
        ConfigError: If a file is not LEAF's.
        MissingDataError: If there is no such file.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise MissingDataError(f"{folder.resolve()}: expected LEAF's *.json files, got none; run LEAF's preprocess.sh")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for writer_images, writer_labels in _writers(files, image_size):
        if len(images) == max_writers:
            break
        images.append(writer_images)
        labels.append(writer_labels)
    sizes = torch.tensor([len(writer_labels) for writer_labels in labels])
    return WriterImages(
        images=torch.cat(images),
        labels=torch.cat(labels),
        writers=torch.arange(len(labels)).repeat_interleave(sizes),
    )


def _writers(files: list[Path], image_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for file in files:
        try:
            content = json.loads(file.read_text())
            for user in content["users"]:
                yield _images_and_labels(content["user_data"][user], image_size)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}: expected LEAF's users and user_data with {image_size}x{image_size} pixels in [0, 1] as x "
                f"and integers as y, got: {error!r}"
            ) from error


def _images_and_labels(user_data: dict[str, Any], image_size: int) -> tuple[Tensor, Tensor]:
    pixels = np.asarray(user_data["x"], dtype=np.float64).reshape(len(user_data["y"]), 1, image_size, image_size)
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}")
    images = torch.from_numpy(np.rint(pixels * 255).astype(np.uint8))
    return images, torch.tensor(user_data["y"], dtype=torch.int64)
