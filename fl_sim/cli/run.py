"""``fl-sim run``: federation, recording, attack, scores, page."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from attacker.campaign import resolve_setting
from clients.client_app import build_defense
from fl_sim.cli.analysis import analyse, load_extractor
from fl_sim.cli.federation_progress import show_federation
from fl_sim.cli.interruption import clean_interruption
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunsDirOption, SetOption
from fl_sim.cli.terminal import errors, output
from fl_sim.config import Experiment, read_experiment
from fl_sim.deployment.address import SuperLinkAddress, parse_superlink_address
from fl_sim.errors import ConfigError
from fl_sim.federated_data import load_federated_data
from fl_sim.files import write_bytes
from fl_sim.models import MODELS
from fl_sim.options import build
from fl_sim.run_store import create_run
from fl_sim.runtime import run_federation
from fl_sim.seeds import generator
from fl_sim.server_app import check_server_privacy

CLIENT_APP = "clients.client_app:build_client_app"
ENGINE_NAMES = ("ray", "inprocess", "deployment")
_ENGINE_HELP = (
    "ray (client processes), inprocess (for debugging) or deployment (SuperLink and SuperNodes; slow: each message "
    "to a client starts a process that imports torch, 4 to 9 s of one core)."
)


def run(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="See experiments/.")] = None,
    assignments: SetOption = None,
    engine: Annotated[str, typer.Option(help=_ENGINE_HELP)] = "ray",
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join this SuperLink and its SuperNodes; start none.")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate authority of that SuperLink, for TLS.")
    ] = None,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    attack: Annotated[bool, typer.Option("--attack/--no-attack", help="Attack the recording.")] = True,
    publish: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Copy the page there too, for a web server that must not see the rest."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Run a federation, record what its server sees, attack the recording, and write the page.

    The last line of standard output is the run folder.

    Example: fl-sim run experiments/digits.toml --set training.epochs=5 --set attack.clients=[0,1]
    """
    if engine not in ENGINE_NAMES:
        raise ConfigError(f"--engine: expected one of {', '.join(ENGINE_NAMES)}, got {engine!r}")
    address = _superlink_address(engine, superlink, root_certificates)
    chosen = _with_absolute_paths(read_experiment(experiment, assignments or ()))
    check_experiment(chosen)
    store = create_run(chosen, runs_dir)
    if not quiet:
        errors.print(f"[bold]{store.folder}[/]", highlight=False)
    federation = run_federation(store, engine=engine, client_app=CLIENT_APP, superlink=address)
    with clean_interruption(), closing(federation) as events:
        show_federation(events, num_rounds=chosen.federation.num_rounds, quiet=quiet)
    failures = analyse(store, chosen.attack if attack else None, quiet=quiet)
    if publish is not None:
        write_bytes(publish / store.report_path.name, store.report_path.read_bytes())
    output.print(str(store.folder), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _superlink_address(engine: str, superlink: str | None, root_certificates: Path | None) -> SuperLinkAddress | None:
    if superlink is None:
        if root_certificates is not None:
            raise ConfigError("--root-certificates: belongs to --superlink HOST:PORT, which is missing")
        return None
    if engine != "deployment":
        raise ConfigError(f"--superlink: needs --engine deployment, got --engine {engine}")
    return parse_superlink_address(superlink, root_certificates)


def check_experiment(experiment: Experiment) -> None:
    """Build every part of an experiment once, so that nothing is written for one that cannot run.

    Raises:
        ConfigError: For an unknown part, an option that does not fit, or an impossible combination.
        MissingDataError: If the data is not there.
    """
    data = load_federated_data(experiment.data, experiment.seed)
    model = build(
        MODELS[experiment.model.name],
        experiment.model.options,
        where="model.options",
        dataset=data.dataset.spec,
        generator=generator(experiment.seed, "model-initialisation"),
    )
    check_server_privacy(experiment, model)
    build_defense(experiment)
    resolve_setting(experiment.attack)
    if experiment.scoring.feature_extractor is not None:
        load_extractor(experiment.scoring)  # an unknown name must not wait for the end of the attack
    rounds, clients = experiment.attack.rounds, experiment.attack.clients
    _check_numbers("attack.rounds", rounds, 1, experiment.federation.num_rounds)
    _check_numbers("attack.clients", clients, 0, experiment.data.num_clients - 1)
    _check_numbers("recording.rounds", experiment.recording.rounds, 1, experiment.federation.num_rounds)
    _check_numbers("recording.clients", experiment.recording.clients, 0, experiment.data.num_clients - 1)


def _check_numbers(name: str, selection: str | tuple[int, ...], lowest: int, highest: int) -> None:
    if isinstance(selection, tuple):
        for number in selection:
            if not lowest <= number <= highest:
                raise ConfigError(f"{name}: expected numbers from {lowest} to {highest}, got {number}")


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    # A run must find its files again from any folder.
    data = replace(experiment.data, options=_with_absolute_path(experiment.data.options, "path"))
    model = replace(experiment.model, options=_with_absolute_path(experiment.model.options, "weights"))
    scoring = replace(
        experiment.scoring,
        alexnet_weights=_absolute(experiment.scoring.alexnet_weights),
        efficientnet_weights=_absolute(experiment.scoring.efficientnet_weights),
    )
    return replace(experiment, data=data, model=model, scoring=scoring)


def _with_absolute_path(options: dict[str, Any], name: str) -> dict[str, Any]:
    path = options.get(name)
    return {**options, name: _absolute(path)} if isinstance(path, str) else options


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())
