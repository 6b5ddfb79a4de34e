"""``fl-sim import``: updates that another tool recorded become a recording that every command understands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from attacker.num_examples.trial import try_num_examples
from attacker.threat_models import HONEST_BUT_CURIOUS
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunArgument, RunsDirOption, SetOption, find_run
from fl_sim.cli.terminal import errors, output
from fl_sim.config import split_assignment
from fl_sim.errors import ConfigError
from fl_sim.foreign_run import add_truth
from fl_sim.import_plan import ImportPlan, parse_plan, read_plan
from fl_sim.importing import read_import, write_import
from fl_sim.recording_store import Manifest
from fl_sim.records import ClientUpdate, RoundRecord
from fl_sim.seeds import generator


def import_updates(
    manifest: Annotated[
        Path | None, typer.Argument(metavar="MANIFEST.toml", help="Rounds, clients, files; see docs/own-federation.md.")
    ] = None,
    before: Annotated[Path | None, typer.Option(help="Weights that the client was sent: .npz or .safetensors.")] = None,
    after: Annotated[Path | None, typer.Option(help="Weights that it sent back.")] = None,
    gradient: Annotated[Path | None, typer.Option(help="Its gradient, in place of --after.")] = None,
    model: Annotated[str | None, typer.Option(help="A name of 'fl-sim list models', or package.module:Net.")] = None,
    image_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="For instance 1,28,28.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="K.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="Of each channel, in pixel units, as the input was normalised.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    num_examples: Annotated[str | None, typer.Option(help="N_c, or 'estimate' to ask the update itself.")] = None,
    assignments: SetOption = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="The private images and labels, for scoring; see 'fl-sim truth'."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Becomes part of the run folder's name.")] = None,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    quiet: QuietOption = False,
) -> None:
    """Make a run folder of updates that were recorded elsewhere. What had to be assumed is said and kept.

    One update needs no manifest: its files and options do. --set is what is known of local training: --set
    learning_rate=0.1 --set epochs=2 --set batch_size=16 --set momentum=0.9; with a name like model.hidden=[64] it is
    an argument of the model.

    Example: fl-sim import --before w0.npz --after w1.npz --model task:Net --image-shape 1,28,28 --num-classes 10
    --num-examples 32 --set learning_rate=0.1
    """
    options = {
        "--before": before,
        "--after": after,
        "--gradient": gradient,
        "--model": model,
        "--image-shape": image_shape,
        "--num-classes": num_classes,
        "--mean": mean,
        "--std": std,
        "--num-examples": num_examples,
        "--set": assignments,
    }
    given = {option: value for option, value in options.items() if value is not None}
    if manifest is not None:
        if given:
            raise ConfigError(f"{next(iter(given))}: with a manifest this stands in it; leave one of the two out")
        plan = read_plan(manifest)
    else:
        plan = _plan_of_options(given)
    imported = read_import(plan, estimate=_estimate)
    truth = plan.truth if truth is None else truth
    if truth is not None and not truth.is_file():
        raise ConfigError(f"--truth: {truth} does not exist")  # before anything is written
    run = write_import(imported, name=name or plan.name, runs_dir=runs_dir)
    notices = () if truth is None else add_truth(run, truth)
    if not quiet:
        for sentence in imported.assumed:
            errors.print(f"[yellow]assumed:[/] {sentence}", highlight=False)
        for notice in notices:
            errors.print(f"[yellow]{notice}[/]", highlight=False)
    output.print(str(run.folder), highlight=False, soft_wrap=True)


def truth_of_run(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="images, labels and clients.")],
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
) -> None:
    """Put the private images beside a recording that was made elsewhere, so that attacks on it can be scored.

    images are bytes or floats in [0, 1], before any normalisation; clients says whose each is, with the recording's
    numbers, and may be left out where there is one. The file is copied; no attack reads it.

    Example: fl-sim truth latest private.npz
    """
    store = find_run(run, runs_dir)
    if store.assumed() is None:
        raise ConfigError(f"{store.folder} is a run of this platform, which finds its private images itself")
    for notice in add_truth(store, file):
        errors.print(f"[yellow]{notice}[/]", highlight=False)
    output.print(str(store.folder), highlight=False, soft_wrap=True)


def _plan_of_options(given: dict[str, Any]) -> ImportPlan:
    required = ("--before", "--model", "--image-shape", "--num-classes", "--num-examples")
    missing = [option for option in required if option not in given]
    if missing:
        raise ConfigError(f"{missing[0]} is required where there is no manifest; got {', '.join(given) or 'nothing'}")
    settings = dict(map(split_assignment, given.get("--set", ())))
    number = given["--num-examples"]
    data = {
        "image_shape": _numbers(given["--image-shape"], "--image-shape", int),
        "num_classes": given["--num-classes"],
    }
    for key in ("mean", "std"):
        if f"--{key}" in given:
            data[key] = _numbers(given[f"--{key}"], f"--{key}", float)
    files = {key: given[f"--{key}"] for key in ("before", "after", "gradient") if f"--{key}" in given}
    update = {**files, "num_examples": int(number) if number.isdecimal() else number}
    return parse_plan(
        {
            "model": {
                "name": given["--model"],
                "options": {key.removeprefix("model."): settings.pop(key) for key in list(settings) if "." in key},
            },
            "data": data,
            "training": settings,
            "updates": [update],
        },
        base=Path.cwd(),
    )


def _numbers(text: str, option: str, kind: type[int] | type[float]) -> list[int] | list[float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option}: expected numbers such as 1,28,28, got {text!r}") from error


def _estimate(manifest: Manifest, model: nn.Module, record: RoundRecord, update: ClientUpdate) -> tuple[int, str]:
    observation = HONEST_BUT_CURIOUS.observe(
        model=model,
        dataset=manifest.dataset,
        record=record,
        update=update,
        local_training=manifest.local_training,
    )
    draw = generator(0, "attack", update.server_round, update.client_id)
    found = try_num_examples(observation, generator=draw)
    if found.estimate is None:
        raise ConfigError(
            f"num_examples: client {update.client_id} in round {update.server_round}: no estimate applies "
            f"({found.reason}); give a number"
        )
    known = found.estimate
    return known.num_examples, f"as the update tells it (90 %: {known.low} to {known.high}; {known.method})"
