"""Which processes stem from one, and their end: Flower starts helpers in own sessions, which no group reaches."""

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process id and when it started, in clock ticks since boot: ids are used again, the pair is not."""

    pid: int
    started: int


def descendants(pid: int) -> frozenset[ProcessIdentity]:
    """Return the children of a process, their children, and so on; empty where there is no ``/proc``."""
    children: dict[int, list[ProcessIdentity]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        if (found := _read(int(folder.name))) is not None:
            parent, identity = found
            children[parent].append(identity)
    stemming: set[ProcessIdentity] = set()
    waiting = [pid]
    while waiting:
        for child in children[waiting.pop()]:
            stemming.add(child)
            waiting.append(child.pid)
    return frozenset(stemming)


def end_processes(processes: Iterable[ProcessIdentity], *, seconds: float) -> None:
    """Wait for processes to end, and kill those that do not.

    Args:
        processes: As returned by `descendants`, asked to end by the caller.
        seconds: How long to wait for them.
    """
    deadline = time.monotonic() + seconds
    left = [process for process in processes if _is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if _is_alive(process)]
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _is_alive(process: ProcessIdentity) -> bool:
    found = _read(process.pid)
    return found is not None and found[1] == process


def _read(pid: int) -> tuple[int, ProcessIdentity] | None:
    """Return parent and identity, or ``None`` for a process that has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, started = fields[0], int(fields[1]), int(fields[19])
    return None if state in "ZX" else (parent, ProcessIdentity(pid, started))
