"""Entry point of the process in which an engine runs: ``python -m fl_sim.engines.process RUN …``.

A process of its own can be watched, stopped as a group, and has an exit code that is the truth.
"""

import argparse
import sys
from pathlib import Path

from fl_sim.deployment.address import parse_superlink_address
from fl_sim.engines import ENGINES, Federation
from fl_sim.errors import FederationError
from fl_sim.run_store import RunState, RunStatus, open_run


def main(arguments: list[str]) -> None:
    """Run the federation of a run folder; the exit code is 0 only if it finished.

    Args:
        arguments: The run folder, the engine, ``package.module:function`` that makes the ClientApp of an experiment,
            and the SuperLink to join with the file of its certificate authority, if any.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--client-app", required=True)
    parser.add_argument("--superlink")
    parser.add_argument("--root-certificates", type=Path)
    chosen = parser.parse_args(arguments)
    run = open_run(chosen.run)
    superlink = None
    if chosen.superlink is not None:
        superlink = parse_superlink_address(chosen.superlink, chosen.root_certificates)
    try:
        ENGINES[chosen.engine](Federation(run=run, client_app=chosen.client_app, superlink=superlink))
    except FederationError as error:
        if run.status().state is RunState.RUNNING:
            run.write_status(RunStatus(state=RunState.FAILED, message=str(error)))
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
