"""Flower's Simulation Runtime on Ray: each client runs in a worker process of its own.

A deprecated piece of Flower stands here, and nowhere else: `flwr.simulation.run_simulation` (to be replaced by ``flwr
run``, which cannot report a failed run by its exit code).
"""

import logging
import os
import sys
import tempfile
import warnings
from typing import Any

import ray
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

# A worker process that dies is started anew, or Flower would go on sending messages to the dead; the client that it ran
# is tried once more, and then has failed.
_OUTLIVE_A_KILL = {"max_restarts": -1, "max_task_retries": 1}


def run_on_ray(server_app: ServerApp, client_app: ClientApp, num_clients: int) -> None:
    """Run a federation to its end.

    One core for each client, and no GPU: the same bits on every machine. As many at a time as there are cores, on this
    machine or on the cluster that RAY_ADDRESS names.

    Args:
        server_app: Runs in a thread of this process.
        client_app: Sent to the worker processes.
        num_clients: Number of virtual SuperNodes.

    Raises:
        Exception: Whatever the ServerApp raised. Failures of clients are error replies and do not end the run.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="fl-sim-", ignore_cleanup_errors=True) as ray_folder:
        # Ray starts here, so that its folder goes when the run ends; a cluster that is joined has its own settings.
        own: dict[str, Any] = {"_temp_dir": ray_folder, "num_cpus": os.cpu_count(), "include_dashboard": False}
        ray.init(
            **({} if "RAY_ADDRESS" in os.environ else own),
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Workers get the module path of this process.
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_simulation(
                    server_app,
                    client_app,
                    num_clients,
                    # Flower hands these on to Ray as options of its worker processes.
                    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0, **_OUTLIVE_A_KILL}},
                )
        finally:
            ray.shutdown()
