"""The server: one process on the loopback interface, until Ctrl-C."""

import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from dashboard.app import build_app
from dashboard.attack_jobs import AttackJobs
from dashboard.run_index import RunIndex
from fl_sim.errors import ConfigError

HOST = "127.0.0.1"
_SECONDS_TO_FINISH = 3


def serve(
    runs_dir: Path,
    studies_dir: Path,
    *,
    port: int,
    command: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serve the page until a signal ends it; attacks that were started from it end with it.

    Args:
        runs_dir: The runs.
        studies_dir: Studies of defenses, each with a folder ``runs``.
        port: 0 takes any that is free.
        command: What starts `fl-sim`.
        on_ready: Told the address.

    Raises:
        ConfigError: If the port is taken, or not ours to take.
        KeyboardInterrupt: At Ctrl-C, after everything has ended.
    """
    listener = _bind(port)
    number = int(listener.getsockname()[1])
    app = build_app(RunIndex(runs_dir, studies_dir), AttackJobs(command), port=number)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        server_header=False,
        ws="none",
    )
    on_ready(f"http://{HOST}:{number}/")
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        found = "which another program has taken" if is_taken else f"which cannot be taken ({error})"
        raise ConfigError(
            f"--port: expected a free port of {HOST}, got {port}, {found}; take another one, or --port 0 for any"
        ) from error
    return listener
