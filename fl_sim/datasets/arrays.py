"""Anything that fits into one ``.npz`` file.

    images    (N, H, W) or (N, H, W, 3), uint8
    labels    (N,), integers from 0
    clients   (N,), integers from 0; optional
    classes   (K,), text; optional

Other entries are ignored. The file is read without pickle, so a foreign file cannot run code.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from fl_sim.datasets.channel_statistics import channel_statistics
from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.hold_out import with_held_out_test_set
from fl_sim.datasets.source_path import find_source
from fl_sim.errors import ConfigError
from fl_sim.records import DatasetSpec

_REMEDY = "write one with numpy.savez_compressed(path, images=…, labels=…) and give its path"
_CLIENT_TEST_FRACTION = 0.1
_IMAGE_TEST_FRACTION = 0.2


def arrays(
    *,
    path: Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    rows_per_client: int | None = None,
    test_fraction: float | None = None,
) -> Dataset:
    """Load images from an ``.npz`` file; rows keep the file's order.

    Args:
        path: The file.
        mean: Mean of each channel in [0, 1]; by default that of all images of the file.
        std: Standard deviation of each channel, > 0; by default that of all images of the file.
        num_classes: K; by default the number of ``classes``, or else the highest label plus one.
        rows_per_client: Makes each run of that many rows a natural client, where the file names none.
        test_fraction: Share held out for the central test set, in [0, 1); 0 tests on the clients' own images. With
            natural clients a share of whole clients, from the highest ids (default 0.1), so that client c holds the
            file's rows of client c, all of them, in the file's order; without, a share of every class (default 0.2).

    Raises:
        ConfigError: If the file or an option is not as described; names the file, the entry, expected and got.
        MissingDataError: If there is no such file.
    """
    source = find_source(path, dataset="arrays", remedy=_REMEDY)
    entries = _read(source)
    images = _images(source, entries)
    labels = _identifiers(source, "labels", entries["labels"], len(images))
    clients = _clients(source, entries, len(images), rows_per_client)
    class_names = _class_names(source, entries, num_classes, highest_label=int(labels.max()))
    file_mean, file_std = channel_statistics(images)
    num_channels, height, width = images.shape[1:]
    if test_fraction is None:
        test_fraction = _IMAGE_TEST_FRACTION if clients is None else _CLIENT_TEST_FRACTION
    return with_held_out_test_set(
        name=source.stem,
        images=images,
        labels=labels,
        spec=DatasetSpec(
            image_shape=(num_channels, height, width),
            num_classes=len(class_names),
            mean=file_mean if mean is None else mean,
            std=file_std if std is None else std,
            class_names=class_names,
        ),
        clients=clients,
        test_fraction=test_fraction,
    )


def _read(source: Path) -> dict[str, npt.NDArray[np.generic]]:
    wanted = ("images", "labels", "clients", "classes")
    entries: dict[str, npt.NDArray[np.generic]] | None = None
    try:
        archive = np.load(source, allow_pickle=False)
        if isinstance(archive, NpzFile):
            with archive:
                entries = {key: archive[key] for key in wanted if key in archive}
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise ConfigError(
            f"{source}: expected an .npz file without pickled objects, got: {error}; {_REMEDY}"
        ) from error
    if entries is None:
        raise ConfigError(f"{source}: expected an .npz file, got a single array (.npy); {_REMEDY}")
    for key in ("images", "labels"):
        if key not in entries:
            raise ConfigError(f"{source}: expected an entry {key!r}, got {sorted(entries) or 'none that is known'}")
    return entries


def _images(source: Path, entries: dict[str, npt.NDArray[np.generic]]) -> Tensor:
    images = entries["images"]
    is_grey = images.ndim == 3
    is_colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (is_grey or is_colour):
        raise ConfigError(
            f"{source}: images: expected uint8 of shape (N, H, W) or (N, H, W, 3), "
            f"got {images.dtype} of shape {images.shape}"
        )
    if images.size == 0:
        raise ConfigError(f"{source}: images: expected at least one image, got shape {images.shape}")
    tensor = torch.from_numpy(images)
    return tensor.unsqueeze(1) if is_grey else tensor.permute(0, 3, 1, 2).contiguous()


def _identifiers(source: Path, key: str, values: npt.NDArray[np.generic], num_images: int) -> Tensor:
    if values.dtype.kind not in "iu" or values.shape != (num_images,):
        raise ConfigError(
            f"{source}: {key}: expected integers of shape ({num_images},), one for each image, "
            f"got {values.dtype} of shape {values.shape}"
        )
    identifiers = torch.from_numpy(values.astype(np.int64))
    if int(identifiers.min()) < 0:
        raise ConfigError(f"{source}: {key}: expected integers from 0, got {int(identifiers.min())}")
    return identifiers


def _clients(
    source: Path, entries: dict[str, npt.NDArray[np.generic]], num_images: int, rows_per_client: int | None
) -> Tensor | None:
    if rows_per_client is None:
        return _identifiers(source, "clients", entries["clients"], num_images) if "clients" in entries else None
    if "clients" in entries:
        raise ConfigError(f"{source}: rows_per_client is for files without clients, this one has them; leave it out")
    if rows_per_client < 1:
        raise ConfigError(f"rows_per_client must be >= 1, got {rows_per_client}")
    return torch.arange(num_images) // rows_per_client


def _class_names(
    source: Path, entries: dict[str, npt.NDArray[np.generic]], num_classes: int | None, *, highest_label: int
) -> tuple[str, ...]:
    if "classes" in entries:
        classes = entries["classes"]
        if classes.ndim != 1 or classes.dtype.kind != "U":
            raise ConfigError(
                f"{source}: classes: expected text of shape (K,), got {classes.dtype} of shape {classes.shape}"
            )
        names = tuple(str(name) for name in classes)
        if num_classes not in (None, len(names)):
            raise ConfigError(f"{source}: classes: expected num_classes = {num_classes} names, got {len(names)}")
    else:
        names = tuple(str(label) for label in range(highest_label + 1 if num_classes is None else num_classes))
    if highest_label >= len(names):
        raise ConfigError(f"{source}: labels: expected values below the {len(names)} classes, got {highest_label}")
    return names
