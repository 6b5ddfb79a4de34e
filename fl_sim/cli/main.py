"""``fl-sim``: all commands in one place, and the one place where errors become exit codes.

0    done, and true
1    the federation failed, an attack failed, or a file cannot be trusted
2    the command or the experiment is wrong; nothing was written
130  interrupted; the same command, or ``fl-sim attack RUN``, goes on from there
"""

from typing import Any

import click
import typer
from typer.core import TyperGroup

from fl_sim.cli import (
    attack,
    dashboard,
    defend,
    diagnose,
    exposure,
    labels,
    listing,
    report,
    reproduce,
    run,
    runs,
    scores,
)
from fl_sim.cli.terminal import errors
from fl_sim.errors import ConfigError, FlSimError


class _ErrorReportingGroup(TyperGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
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
    cls=_ErrorReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What does a federated-learning server really learn about my data? Simulate, record, attack, look.",
)
app.command("run")(run.run)
app.command("attack")(attack.attack)
app.command("labels")(labels.labels)
app.command("report")(report.report)
app.command("scores")(scores.scores)
app.command("exposure")(exposure.exposure_of_run)
app.command("diagnose")(diagnose.diagnose_update)
app.command("defend")(defend.defend)
app.command("reproduce")(reproduce.reproduce)
app.command("runs")(runs.runs)
app.command("dashboard")(dashboard.dashboard)
app.command("list")(listing.list_parts)
