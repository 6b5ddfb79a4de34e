"""Real processes: a SuperLink, one SuperNode for each client, and one process for each message to a client.

    SuperLink ─┬─ ServerApp (records into the run folder)
               └─ SuperNodes ── ClientApp, started anew for each message

Either all of them start here and end here, or a SuperLink that is up with its SuperNodes is joined.
"""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NoReturn

from fl_sim.deployment.bundle import write_app
from fl_sim.deployment.control import FlowerRun, SuperLinkControl, SuperLinkError
from fl_sim.deployment.local_processes import local_federation
from fl_sim.engines.federation import Federation
from fl_sim.errors import FederationError
from fl_sim.run_store import RunState, RunStore

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_QUESTIONS = 5.0
_SECONDS_TO_FIRST_ANSWER = 20.0
_SECONDS_WITHOUT_ANSWER = 60.0

_Check = Callable[[], object]


def deploy(federation: Federation) -> None:
    """Run a federation to its end.

    The SuperNodes have ``federation.reply_timeout`` seconds to come online.

    Args:
        federation: The run, its clients, and the SuperLink to join, if any.

    Raises:
        FederationError: If SuperNodes are missing, the SuperLink ends or stays silent, or the ServerApp failed.
    """
    signal.signal(signal.SIGTERM, _leave)
    home = Path(os.environ["FLWR_HOME"])
    write_app(home / "app", federation.run, federation.client_app)
    experiment = federation.run.experiment()
    deadline = time.monotonic() + experiment.federation.reply_timeout
    num_clients = experiment.data.num_clients
    if federation.superlink is not None:
        with SuperLinkControl(federation.superlink) as control:
            silence = _Silence(_SECONDS_TO_FIRST_ANSWER)
            _await_supernodes(control, num_clients, deadline, silence, check=_nothing, describe_missing=_nothing)
            _run(control, home / "app", federation, check=_nothing)
        return
    logs = federation.run.folder / "logs"
    with local_federation(num_clients, home=home, logs=logs) as local, SuperLinkControl(local.address) as control:
        _await_supernodes(
            control,
            num_clients,
            deadline,
            _Silence(math.inf),  # it is starting; should it end instead, the check says so
            check=lambda: local.raise_if_ended(supernodes=True),
            describe_missing=local.describe_missing,
        )
        # From here on a SuperNode that ends is a client that fails: the round goes on without it.
        _run(control, home / "app", federation, check=lambda: local.raise_if_ended(supernodes=False))


def _leave(signal_number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the cleaning up
    sys.exit(128 + signal_number)


def _nothing() -> str:
    return ""


class _Silence:
    """Bears with a SuperLink that does not answer, for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.monotonic()

    @contextlib.contextmanager
    def borne(self) -> Generator[None]:
        try:
            yield
        except SuperLinkError:
            if time.monotonic() - self._since > self._seconds:
                raise
        else:
            self._since = time.monotonic()


def _await_supernodes(
    control: SuperLinkControl,
    num_clients: int,
    deadline: float,
    silence: _Silence,
    *,
    check: _Check,
    describe_missing: Callable[[], str],
) -> None:
    num_online = 0
    while True:
        check()
        with silence.borne():
            num_online = control.num_online()
        if num_online == num_clients:
            return
        if num_online > num_clients:
            raise FederationError(
                f"expected {num_clients} SuperNodes online, got {num_online}; stop the others, or set "
                f"data.num_clients={num_online}"
            )
        if time.monotonic() > deadline:
            raise FederationError(
                f"expected {num_clients} SuperNodes online, got {num_online} within federation.reply_timeout; missing: "
                f"{describe_missing() or 'the SuperLink does not say which; look at the SuperNodes'}"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _run(control: SuperLinkControl, app: Path, federation: Federation, *, check: _Check) -> None:
    run_id = control.start_run(app)
    try:
        ended = _await_end(control, run_id, federation.run, check)
    except BaseException:
        with contextlib.suppress(SuperLinkError):
            control.stop_run(run_id)
        raise
    state = federation.run.status().state
    if ended.is_completed and state is RunState.FINISHED:
        return
    if state is RunState.RUNNING:
        raise FederationError(
            f"Flower says {ended.description}, and the ServerApp did not say why; where it runs, the run folder must "
            f"be {federation.run.folder.resolve()} too"
        )
    sys.exit(1)  # the ServerApp has written the reason into the run's status


def _await_end(control: SuperLinkControl, run_id: int, run: RunStore, check: _Check) -> FlowerRun:
    silence = _Silence(_SECONDS_WITHOUT_ANSWER)
    asked = -math.inf
    while True:
        check()
        # The file costs nothing to look at; but a ServerApp that was killed writes nothing.
        if run.status().state is not RunState.RUNNING or time.monotonic() - asked > _SECONDS_BETWEEN_QUESTIONS:
            asked = time.monotonic()
            with silence.borne():
                if (state := control.run_state(run_id)).is_finished:
                    return state
        time.sleep(_SECONDS_BETWEEN_LOOKS)
