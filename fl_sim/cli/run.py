"""``fl-sim run``: federation, recording, attack, scores, page."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from attacker.report.event_files import follow_federation
from fl_sim.cli.analysis import analyse
from fl_sim.cli.experiment_check import check_experiment, check_resumable, with_absolute_paths
from fl_sim.cli.federation_progress import show_federation
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunsDirOption, SetOption, TensorboardOption, find_run
from fl_sim.cli.terminal import errors, output
from fl_sim.config import read_experiment
from fl_sim.deployment.address import SuperLinkAddress, parse_superlink_address
from fl_sim.errors import ConfigError
from fl_sim.events import Event
from fl_sim.files import write_bytes
from fl_sim.resumption import prepare_resumption
from fl_sim.run_store import RunStore, create_run
from fl_sim.runtime import CLIENT_APP, run_federation

ENGINE_NAMES = ("ray", "inprocess", "deployment")
_ENGINE_HELP = (
    "ray (client processes), inprocess (for debugging) or deployment (SuperLink and SuperNodes; slow: each message "
    "to a client starts a process that imports torch, 4 to 9 s of one core)."
)


def run(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="See experiments/.")] = None,
    assignments: SetOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run whose federation was killed or failed; nothing is lost."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help=_ENGINE_HELP, show_default="ray")] = None,
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
    tensorboard: TensorboardOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a federation, record what its server sees, attack the recording, and write the page.

    The last line of standard output is the run folder.

    Example: fl-sim run experiments/digits.toml --set training.epochs=5 --set attack.clients=[0,1]
    """
    if engine is not None and engine not in ENGINE_NAMES:
        raise ConfigError(f"--engine: expected one of {', '.join(ENGINE_NAMES)}, got {engine!r}")
    if resume is None:
        engine = engine or "ray"
        address = _superlink_address(engine, superlink, root_certificates)
        chosen = with_absolute_paths(read_experiment(experiment, assignments or ()))
        check_experiment(chosen)
        store = create_run(chosen, runs_dir)
    else:
        if experiment is not None or assignments:
            raise ConfigError("--resume: the run has its experiment already; leave out EXPERIMENT.toml and --set")
        store = find_run(resume, runs_dir)
        chosen = store.experiment()
        check_experiment(chosen)
        check_resumable(chosen)
        # The engine is known by the run; what belongs to another is refused before anything is written.
        engine = engine or store.engine() or "ray"
        address = _superlink_address(engine, superlink, root_certificates)
        for notice in prepare_resumption(store, engine=engine):
            errors.print(f"[yellow]{notice}[/]", highlight=False)
    if not quiet:
        errors.print(f"[bold]{store.folder}[/]", highlight=False)
    federation = run_federation(store, engine=engine, client_app=CLIENT_APP, superlink=address)
    with closing(federation), closing(_followed(federation, store, tensorboard)) as events:
        show_federation(events, num_rounds=chosen.federation.num_rounds, quiet=quiet)
    failures = analyse(store, chosen.attack if attack else None, tensorboard=tensorboard, quiet=quiet)
    if publish is not None:
        write_bytes(publish / store.report_path.name, store.report_path.read_bytes())
    output.print(str(store.folder), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _followed(federation: Generator[Event], store: RunStore, tensorboard: bool) -> Generator[Event]:
    wanted = tensorboard or store.tensorboard.exists()
    return follow_federation(federation, store.tensorboard) if wanted else federation


def _superlink_address(engine: str, superlink: str | None, root_certificates: Path | None) -> SuperLinkAddress | None:
    if superlink is None:
        if root_certificates is not None:
            raise ConfigError("--root-certificates: belongs to --superlink HOST:PORT, which is missing")
        return None
    if engine != "deployment":
        raise ConfigError(f"--superlink: needs --engine deployment, got --engine {engine}")
    return parse_superlink_address(superlink, root_certificates)
