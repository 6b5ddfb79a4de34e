"""Whether the federation of a run can go on where it was killed, and what is done before it does.

The server itself goes on from the run's checkpoint, see `fl_sim.server_app`; here a person is told what cannot be.
"""

import hashlib

from fl_sim.errors import ConfigError, RecordingError
from fl_sim.events import drop_torn_event
from fl_sim.files import remove_leftovers
from fl_sim.run_lock import locked
from fl_sim.run_store import RunState, RunStatus, RunStore, installed_packages

_DEPLOYMENT = "deployment"


def prepare_resumption(run: RunStore, *, engine: str) -> tuple[str, ...]:
    """Check that a run can go on, and mark it as running.

    Args:
        run: The run.
        engine: The engine that it shall go on with.

    Returns:
        What a person should know.

    Raises:
        ConfigError: If it still runs, has finished, its experiment was changed, or the engine does not fit.
        RecordingError: If a file of the run is damaged.
    """
    with locked(run.folder):
        if run.status().state is RunState.FINISHED:
            raise ConfigError(
                f"{run.folder}: its federation has finished, there is nothing to resume; 'fl-sim attack' attacks it"
            )
        origin = run.origin()
        _check_experiment(run, origin.get("experiment_sha256"))
        began_with = run.engine()
        if began_with is not None and engine != began_with and _DEPLOYMENT in (engine, began_with):
            raise ConfigError(
                f"--engine: the run began with {began_with!r}, whose clients may hold other data, got {engine!r}; "
                "leave --engine out"
            )
        remove_leftovers(run.folder)
        drop_torn_event(run.events_path)
        run.write_status(RunStatus(state=RunState.RUNNING))
    return _changed_packages(origin.get("packages"))


def _check_experiment(run: RunStore, sha256: object) -> None:
    path = run.folder / "experiment.toml"
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error})") from error
    if found != sha256:
        raise ConfigError(
            f"{path}: the experiment was changed since the run began, so that its rounds would no longer belong "
            "together; undo the change, or run the changed experiment as a new one: fl-sim run EXPERIMENT.toml"
        )


def _changed_packages(recorded: object) -> tuple[str, ...]:
    if not isinstance(recorded, dict):
        return ()
    changed = [
        f"{name} was {recorded[name]} and is {version}"
        for name, version in installed_packages().items()
        if recorded.get(name, version) != version
    ]
    if not changed:
        return ()
    return (f"the bits may differ from those of a run without interruption: {', '.join(changed)}",)
