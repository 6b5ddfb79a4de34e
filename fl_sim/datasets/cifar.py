"""CIFAR-10 and CIFAR-100 from torchvision's files, with the sources' own test sets."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.source_path import find_source
from fl_sim.errors import MissingDataError
from fl_sim.records import DatasetSpec

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def cifar10(*, path: Path | None = None, download: bool = False) -> Dataset:
    """Load 50 000 training and 10 000 test images of 32x32 pixels in ten classes.

    Args:
        path: The folder that holds, or with ``download`` shall hold, ``cifar-10-batches-py``.
        download: Fetches what is missing; do it once before clients in several processes need it.

    Raises:
        ConfigError: If no path was given.
        MissingDataError: If the files are not there, are damaged, or cannot be fetched.

    References:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009.
    """
    from torchvision.datasets import CIFAR10  # torchvision imports slowly; only its own data sets should pay

    return _load(
        CIFAR10,
        name="cifar10",
        path=path,
        download=download,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


def cifar100(*, path: Path | None = None, download: bool = False) -> Dataset:
    """Load 50 000 training and 10 000 test images of 32x32 pixels in a hundred classes (the fine labels).

    Args:
        path: The folder that holds, or with ``download`` shall hold, ``cifar-100-python``.
        download: Fetches what is missing; do it once before clients in several processes need it.

    Raises:
        ConfigError: If no path was given.
        MissingDataError: If the files are not there, are damaged, or cannot be fetched.

    References:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009.
    """
    from torchvision.datasets import CIFAR100

    return _load(
        CIFAR100,
        name="cifar100",
        path=path,
        download=download,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )


def _load(
    source: "type[CIFAR10]",
    *,
    name: str,
    path: Path | None,
    download: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    remedy = f"give the folder that holds {source.base_folder}, or set download = true"
    if path is not None and download:
        path.expanduser().mkdir(parents=True, exist_ok=True)
    root = find_source(path, dataset=name, remedy=remedy)
    try:
        train = source(str(root), train=True, download=download)
        test = source(str(root), train=False, download=download)
    except (RuntimeError, OSError) as error:
        raise MissingDataError(f"data set {name!r} in {root.resolve()}: {error}; {remedy}") from error
    class_names = tuple(cast("list[str]", train.classes))
    return Dataset(
        name=name,
        images=_images(train),
        labels=torch.tensor(cast("list[int]", train.targets)),
        spec=DatasetSpec(
            image_shape=(3, 32, 32), num_classes=len(class_names), mean=mean, std=std, class_names=class_names
        ),
        test_images=_images(test),
        test_labels=torch.tensor(cast("list[int]", test.targets)),
    )


def _images(source: "CIFAR10") -> Tensor:
    return torch.from_numpy(np.asarray(source.data)).permute(0, 3, 1, 2).contiguous()
