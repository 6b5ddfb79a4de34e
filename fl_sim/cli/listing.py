"""``fl-sim list``: what can be named in an experiment."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table as RichTable

from attacker.labels import LABEL_RECOVERIES
from attacker.priors import PRIORS
from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from clients.defenses import DEFENSES, PLACES
from fl_sim.cli.terminal import output
from fl_sim.datasets import DATASETS
from fl_sim.datasets.partitioning import PARTITIONERS
from fl_sim.models import MODELS
from fl_sim.options import describe_options
from fl_sim.tables import Table


class Kind(StrEnum):
    """A family of parts."""

    MODELS = "models"
    DATASETS = "datasets"
    PARTITIONERS = "partitioners"
    DEFENSES = "defenses"
    ATTACKS = "attacks"
    LABELS = "labels"
    PRIORS = "priors"
    THREAT_MODELS = "threat-models"


TABLES: dict[Kind, Table[Any]] = {
    Kind.MODELS: MODELS,
    Kind.DATASETS: DATASETS,
    Kind.PARTITIONERS: PARTITIONERS,
    Kind.DEFENSES: DEFENSES,
    Kind.ATTACKS: ATTACKS,
    Kind.LABELS: LABEL_RECOVERIES,
    Kind.PRIORS: PRIORS,
    Kind.THREAT_MODELS: THREAT_MODELS,
}


def list_parts(kind: Annotated[Kind, typer.Argument(help="Which family.")]) -> None:
    """List the names that an experiment may use, what they are, and their options.

    Example: fl-sim list attacks
    """
    table = RichTable()
    for heading in ("name", "what it is", "options"):
        table.add_column(heading, overflow="fold")
    for name, part in TABLES[kind].items():
        table.add_row(name, _summary(part), "\n".join(describe_options(part)))
    output.print(table)
    if kind is Kind.DEFENSES:
        output.print(
            f"All but dp_sgd and soteria take the option where = one of {', '.join(PLACES)} (default: update). "
            "Consistent batches, a defense as well, are training.order = 'static'.",
            highlight=False,
        )


def _summary(part: Any) -> str:
    description = getattr(part, "description", None) or part.__doc__ or ""
    return str(description).strip().split("\n")[0]
