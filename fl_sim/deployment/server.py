"""The ServerApp of a bundle: serves the run folder that `fl-sim run` has made."""

import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fl_sim.deployment.bundle import RUN
from fl_sim.run_store import open_run
from fl_sim.server_app import build_server_app
from fl_sim.streaming_grid import StreamingGrid

_SECONDS_BETWEEN_QUESTIONS = 0.4

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    build_server_app(open_run(Path(str(context.run_config[RUN]))))(PatientGrid(grid), context)


class PatientGrid(StreamingGrid):
    """Waits a little where there was no reply: here each question is a request, and clients need seconds to start."""

    def __init__(self, grid: Grid) -> None:
        """Wrap the grid of a deployment."""
        super().__init__(grid, lambda reply: None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate, and wait if nothing has come."""
        replies = list(super().pull_messages(message_ids))
        if not replies:
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        return replies
