"""FEMNIST: handwritten digits and letters by writer, dark strokes (0) on a white page (1); writers are the clients.

From LEAF's own files where a path is given, else from Hugging Face with flwr-datasets where the network allows it.
"""

import string
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.hold_out import with_held_out_test_set
from fl_sim.datasets.leaf_json import WriterImages, read_leaf_folder
from fl_sim.datasets.source_path import find_source
from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.records import DatasetSpec

_IMAGE_SIZE = 28
_CLASS_NAMES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
_REMEDY = (
    "make it with LEAF (data/femnist, ./preprocess.sh -s niid --sf 0.05 -k 0 -t sample) and give the path to data/"
)
_SPEC = DatasetSpec(
    image_shape=(1, _IMAGE_SIZE, _IMAGE_SIZE),
    num_classes=len(_CLASS_NAMES),
    mean=(0.9642384386141873,),
    std=(0.15767843198426892,),
    class_names=_CLASS_NAMES,
)


def femnist(*, path: Path | None = None, max_writers: int | None = None, test_fraction: float = 0.1) -> Dataset:
    """Load FEMNIST; writers become natural clients, numbered in the source's order.

    Args:
        path: LEAF's folder: with ``train/`` and ``test/``, or with the ``*.json`` files themselves. ``None`` asks
            flwr-datasets for ``flwrlabs/femnist``; there writers are ordered by name.
        max_writers: Keeps the first that many writers, >= 1; the whole set has some 3 500 with about 225 images each.
        test_fraction: Share of whole writers, from the highest ids, that is held out for the central test set, in
            [0, 1). Not used where LEAF's own ``test/`` is there.

    Raises:
        ConfigError: If a file is not LEAF's, or an option is out of range.
        MissingDataError: If the data are not there and cannot be fetched.

    References:
        Caldas et al., LEAF: A Benchmark for Federated Settings, arXiv:1812.01097, 2018.
    """
    if max_writers is not None and max_writers < 1:
        raise ConfigError(f"max_writers must be >= 1, got {max_writers}")
    if path is None:
        return _held_out(_fetch(max_writers), test_fraction)
    source = find_source(path, dataset="femnist", remedy=_REMEDY)
    if not (source / "train").is_dir():
        return _held_out(read_leaf_folder(source, image_size=_IMAGE_SIZE, max_writers=max_writers), test_fraction)
    train = read_leaf_folder(source / "train", image_size=_IMAGE_SIZE, max_writers=max_writers)
    test = read_leaf_folder(source / "test", image_size=_IMAGE_SIZE, max_writers=max_writers)
    return Dataset(
        name="femnist",
        images=train.images,
        labels=train.labels,
        spec=_SPEC,
        clients=train.writers,
        test_images=test.images,
        test_labels=test.labels,
    )


def _held_out(source: WriterImages, test_fraction: float) -> Dataset:
    return with_held_out_test_set(
        name="femnist",
        images=source.images,
        labels=source.labels,
        spec=_SPEC,
        test_fraction=test_fraction,
        clients=source.writers,
    )


def _fetch(max_writers: int | None) -> WriterImages:
    try:
        federated_dataset = import_module("flwr_datasets").FederatedDataset
    except ImportError as error:
        raise MissingDataError(
            "data set 'femnist': no path was given and flwr-datasets is not installed; "
            f"pip install 'flwr-datasets[vision]', or {_REMEDY}"
        ) from error
    try:
        split: Any = federated_dataset(dataset="flwrlabs/femnist", partitioners={"train": 1}, shuffle=False).load_split(
            "train"
        )
    except (OSError, ValueError) as error:
        raise MissingDataError(f"data set 'femnist': Hugging Face did not deliver: {error}; {_REMEDY}") from error
    names, ids = np.unique(list(split["writer_id"]), return_inverse=True)
    rows = np.argsort(ids, kind="stable")
    rows = rows[ids[rows] < (len(names) if max_writers is None else max_writers)]
    chosen = split.select(rows.tolist())
    images = np.stack([np.asarray(example["image"], dtype=np.uint8) for example in chosen])
    return WriterImages(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.tensor(list(chosen["character"]), dtype=torch.int64),
        writers=torch.from_numpy(ids[rows].astype(np.int64)),
    )
