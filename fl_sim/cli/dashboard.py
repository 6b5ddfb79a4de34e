"""``fl-sim dashboard``: the runs in a browser."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dashboard.server import serve
from fl_sim.cli.options import DEFAULT_RUNS_DIR
from fl_sim.cli.terminal import errors, output

DEFAULT_PORT = 8420
# This installation, whatever else is called fl-sim, and never a module of the folder in which one happens to be.
_FL_SIM = (sys.executable, "-P", "-m", "fl_sim.cli")


def dashboard(
    runs_dir: Annotated[Path, typer.Argument(metavar="[RUNS_DIR]", help="Where runs live.")] = DEFAULT_RUNS_DIR,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes any.")] = DEFAULT_PORT,
    defended: Annotated[Path, typer.Option(help="Where the studies of `fl-sim defend` live.")] = Path("defended"),
) -> None:
    """Show runs, attacks and images in a browser on this machine, follow what runs, and start attacks.

    Ctrl-C ends it, and the attacks that were started from it; what they have finished stays.

    Example: fl-sim dashboard runs --port 8420
    """

    def say(address: str) -> None:
        errors.print("dashboard; Ctrl-C ends it:", highlight=False)
        output.print(address, highlight=False, soft_wrap=True)

    serve(runs_dir, defended, port=port, command=_FL_SIM, on_ready=say)
