"""``fl-sim attack``: any attack, any time later, on the same recording."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from fl_sim.cli.analysis import analyse
from fl_sim.cli.options import (
    DEFAULT_RUNS_DIR,
    QuietOption,
    RunArgument,
    RunsDirOption,
    SetOption,
    TensorboardOption,
    WorkersOption,
    find_run,
    parse_selection,
    parse_workers,
)
from fl_sim.cli.terminal import output
from fl_sim.config import AttackConfig, split_assignment
from fl_sim.options import parse_dataclass


def attack(
    run: RunArgument,
    name: Annotated[str | None, typer.Option("--attack", help="A name of 'fl-sim list attacks'.")] = None,
    rounds: Annotated[str | None, typer.Option(help="For instance 1,3; default: as in the experiment.")] = None,
    clients: Annotated[str | None, typer.Option(help="For instance 0,2; default: as in the experiment.")] = None,
    seeds: Annotated[str | None, typer.Option(help="For instance 0,1,2.")] = None,
    cohort: Annotated[int | None, typer.Option(min=1, help="Attack the mean of so many updates at a time.")] = None,
    mean_of_rounds: Annotated[
        int | None, typer.Option(min=1, help="Attack the mean of a client's last so many replies.")
    ] = None,
    threat_model: Annotated[str | None, typer.Option(help="A name of `fl-sim list threat-models`.")] = None,
    workers: WorkersOption = None,
    gpu_share: Annotated[float | None, typer.Option(help="Of a GPU, for each attack, for instance 0.25.")] = None,
    assignments: SetOption = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Write the images down while they form, for `fl-sim dashboard`.")
    ] = False,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    tensorboard: TensorboardOption = False,
    quiet: QuietOption = False,
) -> None:
    """Attack a recording. Finished work is skipped, so the same command resumes after an interruption.

    --set takes hyper-parameters of the attack: --set steps=800 --set total_variation=0.0001

    Example: fl-sim attack latest --attack inverting_gradients --rounds 1,3 --clients 0,2
    """
    store = find_run(run, runs_dir)
    planned = store.experiment().attack
    same_attack = name is None or name == planned.name
    options = {**(planned.options if same_attack else {}), **dict(map(split_assignment, assignments or ()))}
    chosen: dict[str, Any] = {
        "name": name,
        "options": options,
        "rounds": parse_selection(rounds, name="rounds"),
        "clients": parse_selection(clients, name="clients"),
        "seeds": parse_selection(seeds, name="seeds"),
        "cohort": cohort,
        "mean_of_rounds": mean_of_rounds,
        "threat_model": threat_model,
        "workers": parse_workers(workers),
        "gpu_share": gpu_share,
    }
    changes = {key: value for key, value in chosen.items() if value is not None}
    config = parse_dataclass(AttackConfig, {**asdict(planned), **changes})
    failures = analyse(store, config, tensorboard=tensorboard, snapshots=snapshots, quiet=quiet)
    output.print(str(store.folder), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)
