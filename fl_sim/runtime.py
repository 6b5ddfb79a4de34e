"""Starts a federation in a process of its own, streams its progress, and says the truth about how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from fl_sim.deployment.address import SuperLinkAddress
from fl_sim.errors import FederationError
from fl_sim.events import Event, follow_events, read_events
from fl_sim.process_tree import descendants, end_processes, group_members
from fl_sim.run_lock import locked
from fl_sim.run_store import RunState, RunStatus, RunStore

# By name: the platform must not import the clients (see docs/architecture.md).
CLIENT_APP = "clients.client_app:build_client_app"

_QUIET_AND_OFFLINE = {
    # Read by Flower and Ray at import: no telemetry, no look for updates, no installation at run time.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Clients run side by side, one thread each.
    "OMP_NUM_THREADS": "1",
}
# In spite of its name: a Ray of this machine alone, which listens on the loopback interface and not on every one.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_SECONDS_TO_EXIT = 60.0
_SECONDS_TO_TERMINATE = 10.0


def run_federation(
    run: RunStore, *, engine: str, client_app: str, superlink: SuperLinkAddress | None = None
) -> Generator[Event]:
    """Run the federation of a run folder to its end and yield what happens.

    Nothing is left behind, however it ends: the process group and all that stems from it is stopped, and the engine's
    home is removed. Close the iterator where its loop may be left early (`contextlib.closing`).

    Args:
        run: A run made by `create_run`; one that was killed goes on from its checkpoint.
        engine: A name of ENGINES.
        client_app: ``package.module:function`` that makes the ClientApp of an experiment.
        superlink: A SuperLink to join, for the engine ``deployment``.

    Raises:
        FederationError: If the federation did not finish; the message gives the reason and the log.
        ConfigError: If the run's federation is running already.
    """
    command = [sys.executable, "-m", "fl_sim.engines.process", str(run.folder)]
    command += ["--engine", engine, "--client-app", client_app]
    if superlink is not None:
        command += ["--superlink", str(superlink)]
        if superlink.root_certificates is not None:
            command += ["--root-certificates", str(superlink.root_certificates)]
    settings = _QUIET_AND_OFFLINE if "RAY_ADDRESS" in os.environ else {**_QUIET_AND_OFFLINE, **_ALONE}
    before = len(read_events(run.events_path))
    with (
        locked(run.folder) as lock,
        tempfile.TemporaryDirectory(prefix="fl-sim-flwr-", ignore_cleanup_errors=True) as home,
    ):
        with run.log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings, "FLWR_HOME": home},
                start_new_session=True,
                pass_fds=(lock,),  # should this process be killed, the run stays locked while the engine goes on
            )
        try:
            run.write_engine(engine, process.pid)
            yield from follow_events(run.events_path, _Watch(process, run).is_running, skip=before)
            _raise_unless_finished(run, process.poll())
        finally:
            was_running = run.status().state is RunState.RUNNING
            stop_process_group(process)
            # A server that is stopped may have called that its failure.
            if was_running and run.status().state is not RunState.FINISHED:
                run.write_status(RunStatus(state=RunState.FAILED, message="stopped before its end"))


def stop_process_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, every process of the group, and its descendants that left the group.

    All of them are gone when it returns.
    """
    stemming = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_TERMINATE)
    end_processes(stemming | group_members(process.pid), seconds=0)
    process.wait()


class _Watch:
    """Says whether the federation still runs; a process that stays after the end is not waited for.

    Flower's simulation never returns while a client hangs, though the server has long finished.
    """

    def __init__(self, process: subprocess.Popen[bytes], run: RunStore) -> None:
        self._process = process
        self._run = run
        self._ended_at: float | None = None

    def is_running(self) -> bool:
        if self._process.poll() is not None:
            return False
        if self._run.status().state is RunState.RUNNING:
            return True
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() - self._ended_at < _SECONDS_TO_EXIT


def _raise_unless_finished(run: RunStore, exit_code: int | None) -> None:
    status = run.status()
    if status.state is RunState.FINISHED:
        return
    reason = status.message or f"the process ended with exit code {exit_code}: {_last_line(run.log_path)}"
    if status.state is RunState.RUNNING:
        run.write_status(RunStatus(state=RunState.FAILED, message=reason))
    raise FederationError(f"the federation failed: {reason}; the whole log is in {run.log_path}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
