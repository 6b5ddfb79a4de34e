"""How far a campaign is, in a file that a page can follow.

    attacks/<setting>/campaign.json     attacks done, failed and under way, and the process that runs them

Only the campaign's own process writes it, once a second at most. What was done stands in the results themselves; this
file is of use while the campaign runs, and afterwards for the reasons of what failed.
"""

import contextlib
import os
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.campaign_observer import CampaignObserver, TaskFailure
from fl_sim.entries import Format, parse_entry
from fl_sim.errors import StorageError, brief

FORMAT = Format("fl-sim-campaign", 1)
_FILE_NAME = "campaign.json"
_SECONDS_BETWEEN_ENTRIES = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAttack:
    """An attack that is under way.

    Attributes:
        key: Folder name of the result to come.
        step: The last one that was reported.
        num_steps: Of the attack.
        matching_loss: At that step; ``None`` where it is not finite.
    """

    key: str
    step: int
    num_steps: int
    matching_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttack:
    """An attack that ended without a result: folder name of the result, and the reason."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignEntry:
    """Where a campaign stands.

    Attributes:
        host: The machine that runs it.
        pid: Its process there.
        process_started: When that process began, in seconds since 1970; another process of that id began later.
        started: When the campaign began, likewise.
        updated: When this was written, likewise.
        waiting: Folder names of the results that are still to come, those under way included.
        finished: Attacks of this campaign that are done.
        running: Those under way.
        failed: Those without a result.
        has_ended: Whether the campaign is over.
    """

    host: str
    pid: int
    process_started: float
    started: float
    updated: float
    waiting: tuple[str, ...]
    finished: int = 0
    running: tuple[RunningAttack, ...] = ()
    failed: tuple[FailedAttack, ...] = ()
    has_ended: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether the process that wrote this still runs; ``True`` for one of another machine that has not ended."""
        if self.has_ended:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1.0
        except psutil.Error:
            return False


def journal_path(results: Path) -> Path:
    """Return where the journal of an attack setting's folder stands, if there is one."""
    return results / _FILE_NAME


def read_journal(results: Path) -> CampaignEntry | None:
    """Return where the last campaign of an attack setting stands, or ``None`` where there was none.

    Raises:
        RecordingError: If the file is damaged or foreign.
    """
    path = journal_path(results)
    return parse_entry(CampaignEntry, path, FORMAT.read(path)) if path.exists() else None


@contextlib.contextmanager
def journal(results: Path, keys: Sequence[ResultKey], observer: CampaignObserver) -> Generator[CampaignObserver]:
    """Keep the journal of a campaign, and tell an observer as well.

    Args:
        results: Folder of the attack setting.
        keys: What is to be done.
        observer: Told everything.
    """
    writer = _Journal(results, keys, observer)
    try:
        yield writer
    finally:
        writer.end()


class _Journal(CampaignObserver):
    def __init__(self, results: Path, keys: Sequence[ResultKey], observer: CampaignObserver) -> None:
        now = time.time()
        self._path = journal_path(results)
        self._observer = observer
        self._running: dict[ResultKey, RunningAttack] = {}
        self._last = 0.0
        self._entry = CampaignEntry(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            started=now,
            updated=now,
            waiting=tuple(key.folder_name for key in keys),
        )
        self._write()

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        self._observer.on_step(key, progress)
        loss = progress.matching_loss
        self._running[key] = RunningAttack(
            key=key.folder_name,
            step=progress.step,
            num_steps=progress.num_steps,
            matching_loss=loss if abs(loss) < float("inf") else None,  # also not for NaN
        )
        if time.monotonic() - self._last > _SECONDS_BETWEEN_ENTRIES:
            self._write()

    def on_finished(self, key: ResultKey) -> None:
        self._observer.on_finished(key)
        self._drop(key)
        self._entry = replace(self._entry, finished=self._entry.finished + 1)
        self._write()

    def on_failed(self, failure: TaskFailure) -> None:
        self._observer.on_failed(failure)
        self._drop(failure.key)
        failed = FailedAttack(key=failure.key.folder_name, reason=brief(failure.reason))
        self._entry = replace(self._entry, failed=(*self._entry.failed, failed))
        self._write()

    def end(self) -> None:
        self._running.clear()
        self._entry = replace(self._entry, has_ended=True)
        self._write()

    def _drop(self, key: ResultKey) -> None:
        self._running.pop(key, None)
        waiting = tuple(name for name in self._entry.waiting if name != key.folder_name)
        self._entry = replace(self._entry, waiting=waiting)

    def _write(self) -> None:
        self._last = time.monotonic()
        self._entry = replace(self._entry, running=tuple(self._running.values()), updated=time.time())
        with contextlib.suppress(StorageError):  # results are what counts; where they cannot be written, they say so
            FORMAT.write(self._path, asdict(self._entry))
