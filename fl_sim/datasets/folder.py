"""A folder of pictures, one sub-folder a class: ``path/<class>/<picture>``."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fl_sim.datasets.channel_statistics import channel_statistics
from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.hold_out import with_held_out_test_set
from fl_sim.datasets.source_path import find_source
from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.records import DatasetSpec

_REMEDY = "give a folder with one sub-folder of pictures for each class"


def folder(
    *,
    path: Path | None = None,
    size: int = 224,
    colour: Literal["rgb", "grey"] = "rgb",
    test_fraction: float = 0.2,
) -> Dataset:
    """Load pictures of any size: shorter side resized to ``size``, then the square in the middle.

    Args:
        path: The folder; classes are its sub-folders in alphabetical order.
        size: Height and width in pixels, >= 1.
        colour: ``"rgb"`` for three channels, ``"grey"`` for one.
        test_fraction: Share of every class that is held out for the central test set, in [0, 1).

    Raises:
        ConfigError: If a picture cannot be read.
        MissingDataError: If there is no such folder, or no picture in one of its sub-folders.
    """
    from torchvision.datasets import ImageFolder  # torchvision imports slowly; only its own data sets should pay

    if size < 1:
        raise ConfigError(f"size must be >= 1, got {size}")
    source = find_source(path, dataset="folder", remedy=_REMEDY)
    try:
        listing = ImageFolder(str(source))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"data set 'folder': {source.resolve()}: {error}; {_REMEDY}") from error
    samples = listing.samples
    images = torch.stack([_read(Path(file), size, colour) for file, _ in samples])
    labels = torch.tensor([label for _, label in samples])
    class_names = tuple(listing.classes)
    mean, std = channel_statistics(images)
    spec = DatasetSpec(
        image_shape=(images.shape[1], size, size),
        num_classes=len(class_names),
        mean=mean,
        std=std,
        class_names=class_names,
    )
    return with_held_out_test_set(
        name=source.name, images=images, labels=labels, spec=spec, test_fraction=test_fraction
    )


def _read(file: Path, size: int, colour: Literal["rgb", "grey"]) -> Tensor:
    from torchvision.transforms import functional

    try:
        with Image.open(file) as picture:
            converted = picture.convert("RGB" if colour == "rgb" else "L")
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{file}: expected a picture, got: {error}; mend or remove the file") from error
    cropped = functional.center_crop(functional.resize(converted, [size]), [size, size])  # pyright: ignore[reportArgumentType]
    return functional.pil_to_tensor(cropped)
