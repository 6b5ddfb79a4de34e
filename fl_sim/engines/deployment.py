"""Real processes: a SuperLink, one SuperNode for each client, and one process for each message to a client.

    SuperLink ─┬─ ServerApp (records into the run folder)
               └─ SuperNodes ── ClientApp, started anew for each message

Either all of them start here and end here, or a SuperLink that is up with its SuperNodes is joined.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fl_sim.deployment.bundle import write_app
from fl_sim.deployment.control import FlowerRun, SuperLinkControl, SuperLinkError
from fl_sim.deployment.local_processes import local_federation
from fl_sim.engines.federation import Federation
from fl_sim.errors import FederationError
from fl_sim.run_store import RunState

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_WITHOUT_ANSWER = 30.0

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
            _await_supernodes(control, num_clients, deadline, check=_nothing, describe_missing=_nothing)
            _run(control, home / "app", federation, check=_nothing)
        return
    logs = federation.run.folder / "logs"
    with local_federation(num_clients, home=home, logs=logs) as local, SuperLinkControl(local.address) as control:
        _await_supernodes(
            control,
            num_clients,
            deadline,
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


def _await_supernodes(
    control: SuperLinkControl, num_clients: int, deadline: float, *, check: _Check, describe_missing: Callable[[], str]
) -> None:
    silent_since: float | None = None
    num_online = 0
    while num_online != num_clients:
        check()
        try:
            num_online = control.num_online()
            silent_since = None
        except SuperLinkError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SECONDS_WITHOUT_ANSWER:
                raise
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
        if num_online < num_clients:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _run(control: SuperLinkControl, app: Path, federation: Federation, *, check: _Check) -> None:
    run_id = control.start_run(app)
    try:
        ended = _await_end(control, run_id, check)
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


def _await_end(control: SuperLinkControl, run_id: int, check: _Check) -> FlowerRun:
    silent_since: float | None = None
    while True:
        check()
        try:
            if (state := control.run_state(run_id)).is_finished:
                return state
            silent_since = None
        except SuperLinkError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SECONDS_WITHOUT_ANSWER:
                raise
        time.sleep(_SECONDS_BETWEEN_LOOKS)
