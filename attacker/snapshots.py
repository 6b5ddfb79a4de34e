"""What a running attack has found so far, for those who watch: one small file where the result will be.

    attacks/<setting>/r0001-c00003-s0/snapshot.safetensors     images as bytes, matching losses, step

It is written by the attack's own process, a few times a minute, only where somebody asked for it. The attack does not
know: it reports its steps as always, and whoever wants to see the images at a step calls for them.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attacker.attack import OnStep, Progress
from fl_sim.errors import RecordingError, StorageError
from fl_sim.files import read_tensors, write_tensors

_SECONDS_BETWEEN_SNAPSHOTS = 2.0
_FILE_NAME = "snapshot.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """An attack at one of its steps.

    Attributes:
        images: (N, C, H, W), uint8; not in the order of the private batch, which the attack does not know.
        losses: (T,), the matching loss of each step so far.
        step: Of ``num_steps``.
        num_steps: Of the attack.
    """

    images: Tensor
    losses: Tensor
    step: int
    num_steps: int


class SnapshotWriter:
    """Passes steps on, and writes down the images every other second."""

    def __init__(self, folder: Path, on_step: OnStep) -> None:
        """Write into the folder of a result.

        Args:
            folder: Made if absent.
            on_step: Told about each step.
        """
        self._path = folder / _FILE_NAME
        self._on_step = on_step
        self._losses: list[float | Tensor] = []
        self._last: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Pass a step on, and write it down unless the last snapshot is fresh or there is nothing to see."""
        self._on_step(progress)
        self._losses.append(progress.loss)
        now = time.monotonic()
        if progress.images is None or (self._last is not None and now - self._last < _SECONDS_BETWEEN_SNAPSHOTS):
            return
        self._last = now
        with torch.no_grad():
            pixels = progress.images().float().nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
        # A disk that is full ends the attack where its result is written, with a message, and not here.
        with contextlib.suppress(StorageError):
            write_tensors(
                self._path,
                {
                    "images": (pixels * 255.0).round().to(torch.uint8),
                    "losses": torch.tensor(self._seen()),
                    "steps": torch.tensor([progress.step, progress.num_steps]),
                },
            )

    def _seen(self) -> list[float]:
        """Read the losses from the device, each of them once."""
        seen = [float(loss) for loss in self._losses]
        self._losses[:] = seen
        return seen


def snapshot_path(folder: Path) -> Path:
    """Return where the snapshot of a result stands, if there is one."""
    return folder / _FILE_NAME


def read_snapshot(folder: Path) -> Snapshot:
    """Read the snapshot in the folder of a result.

    Raises:
        RecordingError: If there is none, or it is damaged or foreign.
    """
    path = folder / _FILE_NAME
    tensors = read_tensors(path)
    try:
        images, losses, steps = (tensors[name] for name in ("images", "losses", "steps"))
        step, num_steps = map(int, steps.tolist())
    except (KeyError, ValueError) as error:
        raise RecordingError(f"{path}: expected images, losses and two steps; it is damaged or foreign") from error
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3) or losses.ndim != 1:
        raise RecordingError(f"{path}: expected bytes (N, C, H, W) and losses (T,); it is damaged or foreign")
    return Snapshot(images=images, losses=losses, step=step, num_steps=num_steps)


def remove_snapshot(folder: Path) -> None:
    """Delete a snapshot whose result is there."""
    (folder / _FILE_NAME).unlink(missing_ok=True)
