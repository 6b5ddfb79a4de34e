"""The ServerApp of a bundle: serves the run folder that `fl-sim run` has made."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_sim.deployment.bundle import RUN
from fl_sim.run_store import open_run
from fl_sim.server_app import build_server_app

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    build_server_app(open_run(Path(str(context.run_config[RUN]))))(grid, context)
