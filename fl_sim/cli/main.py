"""``fl-sim``: all commands in one place, and the one place where errors become exit codes.

0    done, and true
1    the federation failed, an attack failed, or a file cannot be trusted
2    the command or the experiment is wrong; nothing was written
130  interrupted (143 by SIGTERM, 129 by a closed terminal); the same command, or ``fl-sim attack RUN``, goes on
"""

from importlib import import_module
from typing import Any

import click
import typer
from typer.core import TyperGroup

from fl_sim.cli.interruption import clean_interruption
from fl_sim.cli.terminal import errors
from fl_sim.errors import ConfigError, FlSimError

COMMANDS = {
    "run": "run:run",
    "attack": "attack:attack",
    "labels": "labels:labels",
    "report": "report:report",
    "scores": "scores:scores",
    "exposure": "exposure:exposure_of_run",
    "diagnose": "diagnose:diagnose_update",
    "defend": "defend:defend",
    "reproduce": "reproduce:reproduce",
    "runs": "runs:runs",
    "dashboard": "dashboard:dashboard",
    "import": "import_updates:import_updates",
    "truth": "import_updates:truth_of_run",
    "list": "listing:list_parts",
}
"""Each command by its module in this package and its function; imported when it is called, since all of them together
take seconds."""


class _Commands(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        settings["commands"] = {name: click.Command(name) for name in COMMANDS}  # names alone, until one is called
        super().__init__(**settings)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(getattr(import_module(f"fl_sim.cli.{module}"), function))
        return typer.main.get_command(alone)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with clean_interruption():
                return super().invoke(ctx)
        except FlSimError as error:
            errors.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt:
            errors.print("[bold yellow]interrupted[/]; finished work is kept")
            ctx.exit(130)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What does a federated-learning server really learn about my data? Simulate, record, attack, look.",
)


@app.callback()
def _fl_sim() -> None:
    pass
