"""What happens in a running federation, line by line, so that another process can show it.

The server appends one JSON object a line to ``events.jsonl``; a terminal or a page follows the file.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fl_sim.errors import RecordingError
from fl_sim.files import as_storage_error, read_text
from fl_sim.options import first_problem


class EventKind(StrEnum):
    """What happened."""

    FEDERATION_STARTED = "federation_started"
    FEDERATION_RESUMED = "federation_resumed"
    ROUND_STARTED = "round_started"
    REPLY_RECEIVED = "reply_received"
    REPLY_FAILED = "reply_failed"
    ROUND_RECORDED = "round_recorded"
    EVALUATED = "evaluated"
    WARNING = "warning"
    FEDERATION_FINISHED = "federation_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event.

    Attributes:
        kind: What happened.
        server_round: The round, 0 before the first; the last one that was done, for FEDERATION_RESUMED.
        total: Rounds for FEDERATION_STARTED, clients asked for ROUND_STARTED.
        failures: Failed replies, for ROUND_RECORDED.
        accuracy: Central accuracy in [0, 1], for EVALUATED.
        loss: Central loss, for EVALUATED.
        message: What a person should know, for FEDERATION_RESUMED, REPLY_FAILED and WARNING.
    """

    kind: EventKind
    server_round: int = 0
    total: int | None = None
    failures: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    message: str | None = None


_EVENT = TypeAdapter(Event)

OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """The default where nobody watches."""


def append_event(path: Path, event: Event) -> None:
    """Append one event as a JSON line.

    Raises:
        StorageError: If it cannot be written.
    """
    with as_storage_error(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(event)) + "\n")


def drop_torn_event(path: Path) -> None:
    """Cut off a last line that a killed writer left unfinished, so that the next one stands alone."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def read_events(path: Path, *, skip: int = 0) -> list[Event]:
    """Read the complete lines of an event file after the first ``skip``.

    Raises:
        RecordingError: If the file is no text, or a line no event.
    """
    if not path.exists():
        return []
    lines = read_text(path).split("\n")[:-1]
    try:
        return [_EVENT.validate_json(line) for line in lines[skip:]]
    except ValidationError as error:
        raise RecordingError(f"{path}: {first_problem(error)}; the file is damaged or foreign") from error


def follow_events(
    path: Path, is_running: Callable[[], bool], *, skip: int = 0, interval: float = 0.1
) -> Iterator[Event]:
    """Yield events as they are written, until the writer no longer runs and everything has been read.

    Args:
        path: The event file; it may not exist yet.
        is_running: Says whether the writing process still runs.
        skip: Events that were there before.
        interval: Seconds between two looks.
    """
    seen = skip
    while True:
        running = is_running()
        for event in read_events(path, skip=seen):
            seen += 1
            yield event
        if not running:
            return
        time.sleep(interval)
