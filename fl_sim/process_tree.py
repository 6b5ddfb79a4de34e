"""Which processes stem from one, and their end: Flower starts helpers in own sessions, which no group reaches."""

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

_SECONDS_TO_DIE = 10.0


def descendants(pid: int) -> frozenset[psutil.Process]:
    """Return the children of a process, their children, and so on; empty if there is no such process."""
    try:
        return frozenset(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return frozenset()


def group_members(group: int) -> frozenset[psutil.Process]:
    """Return the processes of a process group."""
    return frozenset(process for process in psutil.process_iter() if _group_of(process) == group)


def end_processes(processes: Iterable[psutil.Process], *, seconds: float) -> None:
    """Wait for processes to end, kill those that do not, and return when they are gone.

    Args:
        processes: As returned by `descendants`, asked to end by the caller. One whose id was taken over by another is
            left alone.
        seconds: How long to wait for them before they are killed.
    """
    left = _wait(processes, seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, _SECONDS_TO_DIE)


def _wait(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    # Not psutil.wait_procs: it waits for zombies too, which nobody reaps where process 1 of a container is no init.
    deadline = time.monotonic() + seconds
    left = [process for process in processes if _is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if _is_alive(process)]
    return left


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None
