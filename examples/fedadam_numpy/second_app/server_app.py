"""The server: FedAdam, with names of its own for everything."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from second_app.model import build_network, get_weights

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds."""
    strategy = FedAdam(
        fraction_evaluate=0.0,
        weighted_by_key="samples",
        arrayrecord_key="weights",
        configrecord_key="settings",
        eta=0.01,
    )
    if context.run_config["record-to"]:
        from fl_sim.recorder import record

        strategy = record(
            strategy,
            model=build_network,
            data={"image_shape": (1, 8, 8), "num_classes": 10},
            training={"learning_rate": 0.1, "epochs": 1, "batch_size": "all"},
            folder=str(context.run_config["record-to"]),
            name="second",
        )
    torch.manual_seed(0)
    strategy.start(
        grid,
        ArrayRecord(get_weights(build_network())),
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord({"rate": 0.1, "steps": 1, "proximal": 0.1}),
    )
