"""Engines that run the same ServerApp and ClientApp: Flower's simulation on Ray, one process, or real processes."""

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl_sim.engines.deployment import deploy
from fl_sim.engines.federation import Engine, Federation
from fl_sim.engines.in_process import run_in_process
from fl_sim.server_app import build_server_app
from fl_sim.tables import Table, load_reference


def run_on_ray(server_app: ServerApp, client_app: ClientApp, num_clients: int) -> None:
    """Run a federation on Ray, which is imported now: the other engines should not pay for it."""
    from fl_sim.engines import ray_simulation

    ray_simulation.run_on_ray(server_app, client_app, num_clients)


def _simulation(run_apps: Callable[[ServerApp, ClientApp, int], None]) -> Engine:
    def simulate(federation: Federation) -> None:
        experiment = federation.run.experiment()
        client_app: ClientApp = load_reference(federation.client_app, kind="client app")(experiment)
        run_apps(build_server_app(federation.run), client_app, experiment.data.num_clients)

    return simulate


ENGINES: Table[Engine] = Table(
    "engine", {"ray": _simulation(run_on_ray), "inprocess": _simulation(run_in_process), "deployment": deploy}
)

__all__ = ["ENGINES", "Federation", "run_in_process", "run_on_ray"]
