"""A run folder for a federation that trained elsewhere: the same folder, without what nobody told.

The experiment in it says ``elsewhere`` for the data set and its partition, and there is no reference to a truth until
`add_truth` puts the private images beside the recording, in the run folder itself.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fl_sim.config import DataConfig, Experiment, FederationConfig, ModelConfig
from fl_sim.datasets.arrays import arrays
from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.files import write_bytes, write_json
from fl_sim.models import MODELS
from fl_sim.models.torch_module import model_part
from fl_sim.npz_files import read_npz
from fl_sim.options import build
from fl_sim.recording_store import Manifest, NamedPart
from fl_sim.records import DatasetSpec
from fl_sim.run_store import ENCLOSED_TRUTH, EXACT_PIXELS, RunStore, create_run

_UNNOTICED_ROUNDING = 1e-6

Array: TypeAlias = npt.NDArray[Any]

ELSEWHERE = "elsewhere"


def create_foreign_run(
    manifest: Manifest, *, name: str, runs_dir: Path, num_rounds: int, assumed: Sequence[str]
) -> RunStore:
    """Make a run folder and write what is known of the federation.

    Args:
        manifest: What the server knew; see `foreign_model` for its model.
        name: Becomes part of the folder's name: letters, digits, ``-``, ``_`` and ``.``.
        runs_dir: Where runs live; made if absent.
        num_rounds: Rounds of training, recorded or not.
        assumed: What had to be assumed, one sentence each.

    Raises:
        ConfigError: If the name or a number is out of range.
    """
    try:
        experiment = Experiment(
            name=name,
            data=DataConfig(dataset=ELSEWHERE, partition=ELSEWHERE, num_clients=manifest.num_clients),
            model=ModelConfig(name=manifest.model.name, options=manifest.model.options),
            federation=FederationConfig(algorithm=manifest.algorithm, num_rounds=num_rounds),
            training=manifest.local_training,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    run = create_run(experiment, runs_dir, assumed=assumed)
    run.recording.write_manifest(manifest)
    return run


def foreign_model(name: str, options: Mapping[str, Any], dataset: DatasetSpec) -> tuple[NamedPart, nn.Module]:
    """Return a model as a recording names it, and the model itself; its weights mean nothing.

    Args:
        name: A name of MODELS, or ``"package.module:Net"``.
        options: Its options, or the network's arguments.
        dataset: Public facts of the data.

    Raises:
        ConfigError: If it cannot be built.
    """
    found, arguments = model_part(MODELS, name, options)
    part = NamedPart(name=found, options=arguments)
    model = build(MODELS[part.name], part.options, where="model.options", dataset=dataset, generator=torch.Generator())
    return part, model


def check_spec(spec: DatasetSpec) -> None:
    """Refuse public facts that cannot be.

    Raises:
        ConfigError: Naming the fact, what was expected and what was got.
    """
    channels = spec.image_shape[0]
    if min(spec.image_shape) < 1:
        raise ConfigError(f"image_shape must be (C, H, W), each >= 1, got {spec.image_shape}")
    if spec.num_classes < 2:
        raise ConfigError(f"num_classes must be >= 2, got {spec.num_classes}")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != channels:
            raise ConfigError(f"{name}: expected one value for each of {channels} channels, got {len(values)}")
    if min(spec.std) <= 0:
        raise ConfigError(f"std must be > 0, in pixel units of [0, 1], got {spec.std}")
    if len(spec.class_names) != spec.num_classes:
        raise ConfigError(f"class_names: expected {spec.num_classes} names, got {len(spec.class_names)}")


def add_truth(run: RunStore, source: Path) -> tuple[str, ...]:
    """Put the private images into the run folder, so that reconstructions can be scored.

    Nothing that attacks read is changed. Pixels that are no bytes are kept beside their bytes, for scores and replays.

    Args:
        run: A run made by `create_foreign_run`.
        source: An ``.npz`` file with ``images``, bytes or floats in [0, 1] of shape (N, C, H, W), or (N, H, W) and
            (N, H, W, 3); ``labels`` (N,); and ``clients`` (N,), which may be left out where there is one client. A
            client's images stand in its own order. It is copied.

    Returns:
        What a person should know: clients that stated another number of images than they hold.

    Raises:
        ConfigError: If the run has a truth already, or the images are not those of the recording's clients.
        MissingDataError: If there is no such file.
    """
    path = run.folder / "truth" / "truth.json"
    if path.exists():
        raise ConfigError(f"{run.folder} has a truth already: {path}")
    manifest = run.recording.read_manifest()
    spec = manifest.dataset
    images, labels, clients, exact = _read_truth(source, spec)
    enclosed = path.parent / ENCLOSED_TRUTH
    options = {
        "path": ENCLOSED_TRUTH,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_classes": spec.num_classes,
        "test_fraction": 0.0,
    }
    notices = _check_clients(run, clients, source)
    content = io.BytesIO()
    entries: dict[str, Any] = {"images": images, "labels": labels, "clients": clients}
    if len(exact):
        entries[EXACT_PIXELS] = exact
    np.savez_compressed(content, **entries)
    write_bytes(enclosed, content.getvalue())
    try:
        arrays(path=enclosed, mean=spec.mean, std=spec.std, num_classes=spec.num_classes, test_fraction=0.0)
    except (ConfigError, ValueError) as error:
        enclosed.unlink()
        raise ConfigError(str(error).replace(str(enclosed), str(source))) from error
    data = {
        "dataset": "arrays",
        "options": options,
        "partition": "by_client",
        "partition_options": {"partial": True},
        "num_clients": manifest.num_clients,
    }
    write_json(path, {"seed": 0, "data": data, "enclosed": True})
    return notices


def _read_truth(source: Path, spec: DatasetSpec) -> tuple[Array, Array, Array, Array]:
    """Return images as bytes (N, H, W) or (N, H, W, 3), labels, clients, and pixels (N, C, H, W) that are no bytes."""
    if not source.is_file():
        raise MissingDataError(f"{source} does not exist; write one with numpy.savez(path, images=…, labels=…)")
    entries = read_npz(source)
    for name in ("images", "labels"):
        if name not in entries:
            raise ConfigError(f"{source}: expected an entry {name!r}, got {sorted(entries) or 'none'}")
    images, labels, exact = entries["images"], entries["labels"], np.empty(0)
    channels, height, width = spec.image_shape
    if channels not in (1, 3):
        raise ConfigError(f"{source}: expected images of 1 or 3 channels, the recording is of {channels}")
    if images.ndim == 4 and images.shape[1:] == spec.image_shape:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and channels == 1:
        images = images[..., 0]
    expected = (height, width) if channels == 1 else (height, width, channels)
    if images.shape[1:] != expected:
        raise ConfigError(
            f"{source}: images: expected (N, {channels}, {height}, {width}) as the recording says, "
            f"got {entries['images'].shape}"
        )
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ConfigError(
                f"{source}: images: expected pixels in [0, 1], before any normalisation, or bytes; got "
                f"{images.min():.3g} to {images.max():.3g}"
            )
        levels = (images * 255).round()
        if abs(images - levels / 255).max(initial=0) > _UNNOTICED_ROUNDING:
            exact = images.reshape(len(images), height, width, channels).transpose(0, 3, 1, 2).astype(np.float32)
        images = levels.astype(np.uint8)
    clients = entries.get("clients")
    if clients is None:
        clients = np.zeros(len(images), dtype=np.int64)
    return images, labels, clients, exact


def _check_clients(run: RunStore, clients: Array, source: Path) -> tuple[str, ...]:
    held = {int(client): int(count) for client, count in zip(*np.unique(clients, return_counts=True), strict=True)}
    num_clients = run.recording.read_manifest().num_clients
    absent = [client_id for client_id in range(num_clients) if client_id not in held]
    if absent:
        raise ConfigError(
            f"{source}: expected images of each of the {num_clients} clients of the recording, got none of client "
            f"{absent[0]}; the entry 'clients' says whose an image is, with the recording's numbers"
        )
    stated = {
        (client_id, number)
        for server_round in run.recording.rounds()
        for client_id, number in run.recording.read_num_examples(server_round).items()
    }
    return tuple(
        f"client {client_id} holds {held[client_id]} images, and the recording says N_c = {number}"
        for client_id, number in sorted(stated)
        if held[client_id] != number
    )
