"""The server: FedAvg. What fl-sim adds is the import and the line with ``record``."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import MEAN, STD, Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds."""
    config = context.run_config
    strategy = FedAvg(fraction_evaluate=0.0)
    if config["record-to"]:
        from fl_sim.recorder import record

        data = {"image_shape": (1, 8, 8), "num_classes": 10, "mean": (MEAN,), "std": (STD,)}
        training = {
            "learning_rate": config["learning-rate"],
            "epochs": config["local-epochs"],
            "batch_size": config["batch-size"],
            "optimizer": "sgd",
            "loss": "cross_entropy",
            "momentum": 0.0,
            "order": "random",
        }
        folder = str(config["record-to"])
        strategy = record(strategy, model=Net, data=data, training=training, folder=folder, client_key="partition-id")
    torch.manual_seed(0)
    strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=int(config["num-server-rounds"]))
