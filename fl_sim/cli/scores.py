"""``fl-sim scores``: every number of a run, for people and for programs."""

import csv
import json
import math
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from attacker.results import read_results, result_row
from fl_sim.cli.analysis import scores_table
from fl_sim.cli.options import DEFAULT_RUNS_DIR, RunArgument, RunsDirOption, find_run
from fl_sim.cli.terminal import output


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def scores(
    run: RunArgument,
    form: Annotated[Format, typer.Option("--format", help="table, json or csv.")] = Format.TABLE,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
) -> None:
    """Print a row for each round, client, attack and seed, with what was granted and the trivial baselines.

    Example: fl-sim scores latest --format csv > scores.csv
    """
    store = find_run(run, runs_dir)
    if form is Format.TABLE:
        output.print(scores_table(store))
        return
    rows = [_without_nan(result_row(result)) for result in read_results(store)]
    if form is Format.JSON:
        sys.stdout.write(json.dumps(rows, indent=2, allow_nan=False) + "\n")
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sys.stdout, names)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value
