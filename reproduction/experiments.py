"""A row of a table as an experiment: recorded once, found again by its content."""

import json
from pathlib import Path

from fl_sim.config import Experiment, FederationConfig, ModelConfig, RecordingConfig, ScoringConfig
from reproduction.data import PaperData
from reproduction.tables import Row

SEED = 0


def experiment_of(row: Row, data: PaperData, folder: Path) -> Experiment:
    """Return the federation of a row; all clients take part in every round, and the attacked round is recorded.

    Args:
        row: The setting.
        data: Stands for the paper's data set.
        folder: Where its file lies.
    """
    return Experiment(
        name="".join(letter if letter.isalnum() else "-" for letter in f"{data.paper}-{row.name}"),
        seed=SEED,
        data=data.config(folder),
        model=ModelConfig(name=data.model),
        federation=FederationConfig(num_rounds=row.server_round),
        training=row.training,
        defenses=row.defenses,
        recording=RecordingConfig(rounds=(row.server_round,)),
        scoring=ScoringConfig(recovered_threshold_db=data.threshold_db),
    )


def describe(row: Row, data: PaperData) -> str:
    """Say which federation a measurement is about, in words that outlive changes of the code."""
    recipe = row.training
    defended = "".join(f", {link.name} {json.dumps(link.options, sort_keys=True)}" for link in row.defenses)
    return (
        f"{data.file}, {data.model}, seed {SEED}, E={recipe.epochs} m={recipe.batch_size} eta={recipe.learning_rate} "
        f"order={recipe.order}, {data.num_clients} clients from {data.first_client}{defended}"
    )
