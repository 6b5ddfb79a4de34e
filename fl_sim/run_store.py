"""The run folder: everything about one run, in open formats.

runs/20261121-120000-digits/
  run.json          format, versions of packages, seed: how this run came to be
  experiment.toml   the experiment as it was run, defaults included
  status.json       running, finished or failed, and why
  events.jsonl      progress, followed by terminals and pages
  evaluations.json  central accuracy and loss by round
  engine.json       which engine ran the federation, and its process
  checkpoint/       where an unfinished federation stands (`checkpoint`)
  recording/        what the server saw (`recording_store`)
  truth/            where the private images can be found again; read by the scorer only
  attacks/          reconstructions, written by the attacker
  scores/           comparisons with the truth
  report/           the page
  tensorboard/      the same for TensorBoard, where asked for
"""

import importlib.metadata
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import tomli_w

from fl_sim.checkpoint import CheckpointStore
from fl_sim.config import Experiment, read_experiment, to_plain
from fl_sim.entries import Format, parse_entry
from fl_sim.errors import ConfigError, RecordingError, StorageError, brief
from fl_sim.files import check_enclosed, encode_json, overwrite_bytes, read_json, write_bytes, write_json
from fl_sim.recording_store import RecordingStore

FORMAT = Format("fl-sim-run", 1)
ENCLOSED_TRUTH = "private.npz"
"""In ``truth/``: the private images of clients that trained elsewhere, where somebody has put them there."""
EXACT_PIXELS = "pixels"
"""Entry of that file: the same images in float32, where they are no bytes."""
_RECORDED_PACKAGES = ("fl-sim", "flwr", "ray", "torch", "torchvision", "numpy", "scipy", "safetensors")


class RunState(StrEnum):
    """Where a federation stands."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """State of the federation, the reason where it failed, and the wall time where it ended."""

    state: RunState
    message: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvaluation:
    """Central test of the global model; round 0 is the untrained model.

    Attributes:
        server_round: Rounds of training so far.
        accuracy: Share of correct test images, in [0, 1].
        loss: Mean cross-entropy on the test images; ``None`` where the model has diverged.
    """

    server_round: int
    accuracy: float
    loss: float | None


class RunStore:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        """Point at the folder; use `create_run` or `open_run` to make or check it."""
        self.folder = folder
        self.recording = RecordingStore(folder / "recording")
        self.checkpoint = CheckpointStore(folder / "checkpoint")
        self.events_path = folder / "events.jsonl"
        self.attacks = folder / "attacks"
        self.scores = folder / "scores"
        self.report_path = folder / "report" / "index.html"
        self.tensorboard = folder / "tensorboard"
        self.log_path = folder / "federation.log"

    def experiment(self) -> Experiment:
        """Return the experiment as it was run.

        Raises:
            RecordingError: If the file is damaged.
        """
        path = self.folder / "experiment.toml"
        try:
            return read_experiment(path)
        except ConfigError as error:
            raise RecordingError(f"{path}: {error}") from error

    def origin(self) -> dict[str, Any]:
        """Return when and with which packages the run was made."""
        return read_json(self.folder / "run.json")

    def assumed(self) -> tuple[str, ...] | None:
        """Return what had to be assumed of a federation that trained elsewhere, or ``None`` for one of our own."""
        found = self.origin().get("assumed")
        if found is None:
            return None
        return parse_entry(tuple[str, ...], self.folder / "run.json", found)

    def write_status(self, status: RunStatus) -> None:
        """Say where the federation stands, on a full disk too.

        Raises:
            StorageError: If the file cannot be written.
        """
        path, content = self.folder / "status.json", encode_json(asdict(status))
        try:
            write_bytes(path, content)
        except StorageError:
            if not path.exists():
                raise
            overwrite_bytes(path, content)

    def status(self) -> RunStatus:
        """Return where the federation stands."""
        return parse_entry(RunStatus, self.folder / "status.json", read_json(self.folder / "status.json"))

    def write_engine(self, name: str, pid: int) -> None:
        """Say which engine runs the federation, and the id of its process."""
        write_json(self.folder / "engine.json", {"engine": name, "pid": pid})

    def engine(self) -> str | None:
        """Return the engine that ran the federation last, or ``None`` where none has."""
        path = self.folder / "engine.json"
        if not path.exists():
            return None
        name = read_json(path).get("engine")
        if not isinstance(name, str):
            raise RecordingError(f"{path}: engine: expected a name, got {brief(repr(name))}; the file is damaged")
        return brief(name)

    def write_evaluations(self, evaluations: list[RoundEvaluation]) -> None:
        """Write all central evaluations so far."""
        write_json(self.folder / "evaluations.json", {"evaluations": [asdict(entry) for entry in evaluations]})

    def evaluations(self) -> tuple[RoundEvaluation, ...]:
        """Return the central evaluations so far."""
        path = self.folder / "evaluations.json"
        if not path.exists():
            return ()
        return parse_entry(tuple[RoundEvaluation, ...], path, read_json(path).get("evaluations"))


def create_run(experiment: Experiment, runs_dir: Path, *, assumed: Sequence[str] | None = None) -> RunStore:
    """Make a new run folder for an experiment.

    The truth is referenced (data set, partition, seed), never copied.

    Args:
        experiment: The validated experiment.
        runs_dir: Where runs live; made if absent.
        assumed: ``None`` for a federation of this platform. For one that trained elsewhere, what had to be assumed of
            it; there is no reference to a truth then.
    """
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = RunStore(_new_folder(runs_dir, f"{re.sub('[-:Z]', '', created).replace('T', '-')}-{experiment.name}"))
    plain = to_plain(experiment)
    experiment_sha256 = write_bytes(run.folder / "experiment.toml", tomli_w.dumps(plain).encode())
    FORMAT.write(
        run.folder / "run.json",
        {
            "name": experiment.name,
            "created": created,
            "seed": experiment.seed,
            "experiment_sha256": experiment_sha256,
            "packages": installed_packages(),
            "python": platform.python_version(),
            "machine": platform.platform(),
            **({} if assumed is None else {"assumed": list(assumed)}),
        },
    )
    if assumed is None:
        write_json(run.folder / "truth" / "truth.json", {"seed": experiment.seed, "data": plain["data"]})
    run.write_status(RunStatus(state=RunState.RUNNING))
    return run


def open_run(folder: Path) -> RunStore:
    """Open an existing run, perhaps a stranger's.

    Raises:
        RecordingError: If the folder is no run of this version, or something in it leads out of it.
    """
    path = folder / "run.json"
    if not path.exists():
        raise RecordingError(f"{str(folder)!r} is not a run: it has no run.json; 'fl-sim runs' lists the runs")
    check_enclosed(folder)
    FORMAT.read(path)
    return RunStore(folder)


def list_runs(runs_dir: Path) -> list[RunStore]:
    """Return the runs below a folder, oldest first; folders that are no runs are left out."""
    return [RunStore(path.parent) for path in sorted(runs_dir.glob("*/run.json"))]


def find_finished_run(experiment: Experiment, runs_dir: Path) -> RunStore | None:
    """Return a finished run of this very experiment, whatever it says about the attack, or ``None``."""
    for run in list_runs(runs_dir):
        try:
            found = replace(run.experiment(), attack=experiment.attack)
            if found == experiment and run.status().state is RunState.FINISHED:
                return run
        except RecordingError:
            continue  # of another version, or cut off while it was made: recorded again
    return None


def _new_folder(runs_dir: Path, name: str) -> Path:
    runs_dir.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = runs_dir / f"{name}{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RecordingError(f"{runs_dir}: too many runs named {name!r} in one second")


def installed_packages() -> dict[str, str]:
    """Return the versions of the packages on which a run's bits depend."""
    return {name: _package_version(name) for name in _RECORDED_PACKAGES}


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
