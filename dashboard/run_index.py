"""Which runs there are, and the only way from a name in a URL to a folder on disk.

runs/<run>                    ->  <run>
defended/<study>/runs/<run>   ->  <study>~<run>
"""

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fl_sim.errors import FlSimError
from fl_sim.run_store import RunStore, list_runs, open_run

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_BETWEEN = "~"
_SECONDS_ENCLOSED = 10.0


class UnknownRunError(FlSimError):
    """There is no run, or nothing in it, of the name that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """A run that can be looked at.

    Attributes:
        run_id: Its name in URLs.
        study: The study that it belongs to; empty for a run of its own.
        store: Its folder.
    """

    run_id: str
    study: str
    store: RunStore


class RunIndex:
    """The runs below a folder, and those of studies of defenses below another one."""

    def __init__(self, runs_dir: Path, studies_dir: Path) -> None:
        """Look at these folders; neither need exist."""
        self.runs_dir = runs_dir
        self.studies_dir = studies_dir
        self._enclosed: dict[Path, float] = {}
        self._lock = threading.Lock()

    def places(self) -> tuple[RunPlace, ...]:
        """Return all runs, the newest first, those of studies last."""
        found = [RunPlace(run_id=run.folder.name, study="", store=run) for run in _runs(self.runs_dir)]
        found.reverse()
        for study in self.studies():
            found += [
                RunPlace(run_id=f"{study}{_BETWEEN}{run.folder.name}", study=study, store=run)
                for run in _runs(self.study_folder(study) / "runs")
            ]
        return tuple(found)

    def studies(self) -> tuple[str, ...]:
        """Return the names of the studies."""
        names = (path.parent.name for path in sorted(self.studies_dir.glob("*/runs")))
        return tuple(name for name in names if _NAME.fullmatch(name))

    def study_folder(self, study: str) -> Path:
        """Return the folder of a study.

        Raises:
            UnknownRunError: If there is none of that name.
        """
        folder = self.studies_dir / study
        if not _NAME.fullmatch(study) or not _stands_in(folder, self.studies_dir):
            raise UnknownRunError(f"expected the name of a study in {str(self.studies_dir)!r}, got {study[:80]!r}")
        return folder

    def find(self, run_id: str) -> RunPlace:
        """Return a run by its name in URLs.

        Raises:
            UnknownRunError: If there is none of that name.
            RecordingError: If something in its folder leads out of it, or it is of another version.
        """
        study, between, name = run_id.rpartition(_BETWEEN)
        if not _NAME.fullmatch(name) or (between and not _NAME.fullmatch(study)):
            raise UnknownRunError(f"expected the name of a run, got {run_id[:80]!r}")
        above = self.study_folder(study) / "runs" if between else self.runs_dir
        folder = above / name
        if not (folder / "run.json").is_file() or not _stands_in(folder, above):
            raise UnknownRunError(f"no run {name!r} in {str(above)!r}; it was moved or deleted, or never there")
        return RunPlace(run_id=run_id, study=study, store=self._open(folder))

    def _open(self, folder: Path) -> RunStore:
        now = time.monotonic()
        with self._lock:
            fresh = now - self._enclosed.get(folder, -_SECONDS_ENCLOSED) < _SECONDS_ENCLOSED
        if fresh:
            return RunStore(folder)
        store = open_run(folder)
        with self._lock:
            self._enclosed[folder] = now
        return store


def _runs(folder: Path) -> list[RunStore]:
    return [run for run in list_runs(folder) if _NAME.fullmatch(run.folder.name) and _stands_in(run.folder, folder)]


def _stands_in(folder: Path, above: Path) -> bool:
    """Say whether a folder really is one of another, and no link to somewhere else."""
    return folder.is_dir() and folder.resolve().parent == above.resolve()
