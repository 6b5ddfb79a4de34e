"""Entry point of the process in which a simulation runs: ``python -m fl_sim.engines.process RUN …``.

A process of its own can be watched, stopped as a group, and has an exit code that is the truth.
"""

import argparse
import sys
from pathlib import Path

from flwr.clientapp import ClientApp

from fl_sim.engines import ENGINES
from fl_sim.run_store import open_run
from fl_sim.server_app import build_server_app
from fl_sim.tables import load_reference


def main(arguments: list[str]) -> None:
    """Run the federation of a run folder; the exit code is 0 only if it finished.

    Args:
        arguments: The run folder, the engine and ``package.module:function`` that makes the ClientApp of an experiment.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--client-app", required=True)
    chosen = parser.parse_args(arguments)
    run = open_run(chosen.run)
    experiment = run.experiment()
    client_app: ClientApp = load_reference(chosen.client_app, kind="client app")(experiment)
    ENGINES[chosen.engine](build_server_app(run), client_app, experiment.data.num_clients)


if __name__ == "__main__":
    main(sys.argv[1:])
