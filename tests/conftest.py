"""What several test modules share: tiny experiments and runs."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from clients.client_app import build_client_app
from fl_sim.config import Experiment, read_experiment
from fl_sim.engines import run_in_process
from fl_sim.run_store import RunStore, create_run
from fl_sim.server_app import build_server_app

TINY = (
    "name=tiny",
    "data.num_clients=3",
    "data.examples_per_client=6",
    "model.name=mlp",
    "model.options={hidden=[16]}",
    "federation.num_rounds=2",
    "training.epochs=2",
    "training.batch_size=4",
    "training.learning_rate=0.1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put deployments first: they wait for one another, and another worker can do everything else meanwhile."""

    def waits_for_others(item: pytest.Item) -> bool:
        group = item.get_closest_marker("xdist_group")
        return group is not None and "deployment" in group.args

    items.sort(key=lambda item: not waits_for_others(item))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    """Return a function that makes a federation of three clients with six digits each, with changes."""
    return lambda *changes: read_experiment(None, (*TINY, *changes))


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """Return the settings of a tiny experiment, for the command line."""
    return TINY


@pytest.fixture(scope="session")
def run_tiny(tiny, tmp_path_factory) -> Callable[..., RunStore]:
    """Return a function that runs a tiny federation in this process and returns its run.

    ``fails`` is what the server's error says, where it is expected; ``store`` is a run that goes on.
    """

    def run(
        *changes: str,
        wrap=lambda client_app: client_app,
        on_round=lambda record: None,
        fails: str | None = None,
        store: RunStore | None = None,
    ) -> RunStore:
        experiment = tiny(*changes) if store is None else store.experiment()
        store = store or create_run(experiment, tmp_path_factory.mktemp("runs"))
        client_app = wrap(build_client_app(experiment))
        with nullcontext() if fails is None else pytest.raises(Exception, match=fails):
            run_in_process(build_server_app(store, on_round=on_round), client_app, experiment.data.num_clients)
        return store

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data beside the checkout, or skip visibly."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not beside this checkout")
    return folder
