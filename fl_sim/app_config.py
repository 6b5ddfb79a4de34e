"""How ``flwr run .`` hands the experiment to both ends: Flower's run config holds strings and numbers only.

[tool.flwr.app.config]
experiment = "experiments/digits.toml"    a file, absolute or inside the app
set = "federation.num_rounds=1 training.epochs=2"
runs-dir = "/absolute/path/to/runs"
"""

import shlex
from pathlib import Path

from flwr.app import Context

from fl_sim.config import Experiment, read_experiment

APP_FOLDER = Path(__file__).resolve().parent.parent


def experiment_of(context: Context) -> Experiment:
    """Read the experiment that the run config names.

    Raises:
        ConfigError: If it does not exist or is not valid.
    """
    name = str(context.run_config.get("experiment", ""))
    overrides = shlex.split(str(context.run_config.get("set", "")))
    return read_experiment(APP_FOLDER / name if name else None, overrides)


def runs_dir_of(context: Context) -> Path:
    """Return the folder for runs; relative paths start where the server process was started."""
    return Path(str(context.run_config.get("runs-dir", "runs")))
