"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from fl_sim.config import Selection, Workers
from fl_sim.errors import ConfigError
from fl_sim.run_store import RunStore, list_runs, open_run

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or 'latest'.")]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="Where runs live.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
WorkersOption = Annotated[
    str | None, typer.Option(help="Processes, or 'ray' for a cluster (RAY_ADDRESS); default: one per core.")
]
TensorboardOption = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write event files too, for 'tensorboard --logdir RUN'; kept up from then on."),
]
DEFAULT_RUNS_DIR = Path("runs")


def find_run(run: Path, runs_dir: Path = DEFAULT_RUNS_DIR) -> RunStore:
    """Open a run by folder, or the newest one by the word ``latest``.

    Raises:
        ConfigError: If there is no run to be the latest.
        RecordingError: If the folder is no run.
    """
    if str(run) != "latest":
        return open_run(run)
    found = list_runs(runs_dir)
    if not found:
        raise ConfigError(f"no runs in {str(runs_dir)!r}; 'fl-sim run' makes one")
    return open_run(found[-1].folder)


def parse_workers(text: str | None) -> Workers:
    """Read ``2`` or ``ray``.

    Raises:
        ConfigError: If it is neither.
    """
    if text is None:
        return None
    if text == "ray":
        return "ray"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--workers: expected a number of processes or 'ray', got {text!r}")


def parse_selection(text: str | None, *, name: str) -> Selection | None:
    """Read ``1,3`` or ``all``.

    Raises:
        ConfigError: If it is neither.
    """
    if text is None or text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--{name}: expected 'all' or numbers such as 1,3, got {text!r}") from error
