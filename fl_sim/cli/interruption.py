"""A request to end, by Ctrl-C, SIGTERM or a closed terminal, lets the cleaning up run, once and to its end."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def clean_interruption() -> Generator[None]:
    """Turn signals into exceptions inside of the context; after the first one all others are ignored.

    Raises:
        KeyboardInterrupt: For Ctrl-C.
        SystemExit: With 128 plus the signal's number, for the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only
        return
    previous = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(signal_number: int, frame: object) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if signal_number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signal_number)
