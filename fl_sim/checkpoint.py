"""Where a federation stands after a round, so that a killed server goes on from there.

    checkpoint/
      0003.safetensors    the global model after round 3
      checkpoint.json     which round that is, its checksum, what else the server remembers; written last

All randomness follows from seed, round and client, so the model and these few numbers are the whole state of a server.
A checkpoint is written after each round in place of the last one, and goes when the run has finished.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fl_sim.entries import Format, parse_entry
from fl_sim.errors import RecordingError, brief
from fl_sim.files import read_tensors, write_tensors

FORMAT = Format("fl-sim-checkpoint", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What a server remembers from round to round, beside the model.

    Attributes:
        server_round: Rounds done; 0 before the first.
        has_trained: Whether any of them changed the global model.
        num_releases: Models published under central differential privacy.
    """

    server_round: int = 0
    has_trained: bool = False
    num_releases: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    state: ServerState
    sha256: str


class CheckpointStore:
    """Reads and writes the checkpoint of one run."""

    def __init__(self, folder: Path) -> None:
        """Point at the folder; nothing is read or written yet."""
        self.folder = folder

    def write(self, state: ServerState, tensors: Mapping[str, Tensor]) -> None:
        """Replace the checkpoint; a crash leaves the old one or the new one.

        Args:
            state: What the server remembers.
            tensors: The global model, by the names of its state dict.
        """
        path = self._tensors_path(state.server_round)
        entry = _Entry(state=state, sha256=write_tensors(path, tensors))
        FORMAT.write(self._entry_path(), asdict(entry))
        for other in self.folder.glob("*.safetensors"):
            if other != path:
                other.unlink()

    def read(self, expected: Mapping[str, Tensor]) -> tuple[ServerState, dict[str, Tensor]] | None:
        """Return the state and the model, or ``None`` where no round has ended.

        Args:
            expected: Names, shapes and dtypes of the model, in its order.

        Raises:
            RecordingError: If a file is missing, damaged, or of another model.
        """
        path = self._entry_path()
        if not path.exists():
            return None
        entry: _Entry = parse_entry(_Entry, path, FORMAT.read(path))
        path = self._tensors_path(entry.state.server_round)
        tensors = read_tensors(path, sha256=entry.sha256)
        wrong = sorted(tensors.keys() ^ expected.keys())
        wrong += [
            name
            for name, like in expected.items()
            if name in tensors and (tensors[name].shape, tensors[name].dtype) != (like.shape, like.dtype)
        ]
        if wrong:
            raise RecordingError(f"{path}: expected the tensors of the run's model; these differ: {brief(str(wrong))}")
        return entry.state, {name: tensors[name] for name in expected}

    def remove(self) -> None:
        """Delete the checkpoint of a run that has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _entry_path(self) -> Path:
        return self.folder / "checkpoint.json"

    def _tensors_path(self, server_round: int) -> Path:
        return self.folder / f"{server_round:04d}.safetensors"
