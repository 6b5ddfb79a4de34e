"""What was read from a file, kept until the file changes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

Value = TypeVar("Value")
Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Return what changes when a file is replaced: time, size, inode; ``None`` where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class FileCache:
    """The last so many files that were read. May be used by several threads."""

    def __init__(self, capacity: int) -> None:
        """Keep so many values."""
        self._capacity = capacity
        self._entries: OrderedDict[tuple[str, str], tuple[object, object]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, kind: str, path: Path, load: Callable[[], Value]) -> Value:
        """Return what ``load`` makes of a file, from memory where the file is as it was; errors are not kept.

        Args:
            kind: What is made of it; the same file may be read in several ways.
            path: The file.
            load: Reads it.
        """
        key, current = (kind, str(path)), signature(path)
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known[0] == current:
                self._entries.move_to_end(key)
                return cast(Value, known[1])
        value = load()
        with self._lock:
            self._entries[key] = current, value
            self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return value
