"""Who works on a run: its folder is locked as long as its federation runs.

The lock is held by an open file, which the engine's process inherits: it goes with the last of the two, however they
end, and needs no cleaning up.
"""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from fl_sim.errors import ConfigError


@contextlib.contextmanager
def locked(run_folder: Path) -> Generator[int]:
    """Hold a run's lock; a process that inherits the file descriptor holds it too.

    Raises:
        ConfigError: If another process holds it.
    """
    descriptor = os.open(run_folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_folder}: its federation is still running; wait until it has ended, or end the process that "
                "engine.json names"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(run_folder: Path) -> bool:
    """Say whether the federation of a run is still running."""
    try:
        with locked(run_folder):
            return False
    except ConfigError:
        return True
