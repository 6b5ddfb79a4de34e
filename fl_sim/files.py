"""Files of a run: written whole or not at all, read only if they are what they claim to be.

Tensors are safetensors, everything else is JSON or TOML; nothing is ever unpickled. A writer goes through a temporary
file in the same folder and a rename, so that a crash leaves the old file or the new one, never half of one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fl_sim.errors import RecordingError, StorageError, brief

_MOST_BYTES_OF_JSON = 2**28
# As `write_bytes` names a file before it is whole.
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}")


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file atomically, creating its folder, and return the SHA-256 of its content.

    Raises:
        StorageError: If it cannot be written; an older file of that name is as it was.
    """
    with as_storage_error(path):
        _write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def as_storage_error(path: Path) -> Generator[None]:
    """Name the file that could not be written, and say what to do."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if is_full else "see that the folder is there and ours to write"
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was written before is whole: {remedy}, and "
            "go on with the same command, or with 'fl-sim run --resume RUN' if it was a federation"
        ) from error


def overwrite_bytes(path: Path, content: bytes) -> None:
    """Write into a file that is there, which needs no space where it does not grow; a crash leaves half of it."""
    with as_storage_error(path), path.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers have left below a folder; call it where nobody writes."""
    for path in folder.rglob(".*"):
        if _LEFTOVER.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def write_json(path: Path, data: Mapping[str, Any]) -> str:
    """Write strict JSON (no NaN) atomically and return its SHA-256."""
    return write_bytes(path, encode_json(data))


def encode_json(data: Mapping[str, Any]) -> bytes:
    """Return strict JSON (no NaN), as it stands in the files of a run."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write named tensors as safetensors, atomically, and return the file's SHA-256."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, safetensors.torch.save(contiguous))


def read_json(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RecordingError: If the file is missing, damaged, or does not hold an object.
    """
    content = _read(path, sha256, most_bytes=_MOST_BYTES_OF_JSON)
    try:
        data: Any = json.loads(content)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError as well
        raise RecordingError(f"{path}: not valid JSON ({brief(error)}); the file is damaged or foreign") from error
    if not isinstance(data, dict):
        raise RecordingError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        RecordingError: If the file is missing, damaged, or is not safetensors.
    """
    content = _read(path, sha256)
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = f"{path}: not a safetensors file ({brief(error)}); the file is damaged or foreign"
        raise RecordingError(reason) from error


def check_enclosed(folder: Path) -> None:
    """Refuse a folder from which a link leads out, or that holds anything but files, folders and links.

    What is read or written below it then stays below it.

    Raises:
        RecordingError: With the name of the first such entry.
    """
    root = folder.resolve()
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    if not _leads_into(root, path):
                        raise RecordingError(
                            f"{path}: a link that leads out of the run folder; put what it points to into its place"
                        )
                elif entry.is_dir():
                    waiting.append(path)
                elif not entry.is_file():
                    raise RecordingError(f"{path}: expected a file or a folder, got a device, a pipe or a socket")


def _leads_into(root: Path, link: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RecordingError: If it is missing, too large, or no text.
    """
    try:
        return _read(path, None, most_bytes=_MOST_BYTES_OF_JSON).decode()
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not text ({brief(error)}); the file is damaged or foreign") from error


def _read(path: Path, sha256: str | None, *, most_bytes: int | None = None) -> bytes:
    try:
        # Opened without waiting: a pipe in the place of a file would be waited for, for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            found_file = os.fstat(stream.fileno())
            if not stat.S_ISREG(found_file.st_mode):
                raise RecordingError(f"{path}: expected a regular file, got something else")
            if most_bytes is not None and found_file.st_size > most_bytes:
                raise RecordingError(f"{path}: expected at most {most_bytes} bytes, got {found_file.st_size}")
            content = stream.read()
    except FileNotFoundError as error:
        raise RecordingError(f"{path}: the file is missing") from error
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path}: cannot be read ({brief(error)})") from error
    if sha256 is not None:
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise RecordingError(
                f"{path}: the content was changed after recording "
                f"(SHA-256 expected {brief(sha256[:12])}…, got {found[:12]}…)"
            )
    return content
