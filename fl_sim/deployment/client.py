"""The ClientApp of a bundle: the experiment of the server, on the data of the SuperNode that runs it.

A SuperNode's ``--node-config`` says which client it is (``partition-id``) and, where it holds private data of its own,
where they lie (``data-path``): the owner of the data decides that, not the server.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_sim.config import Experiment, read_experiment
from fl_sim.deployment.bundle import CLIENT_APP
from fl_sim.tables import load_reference

DATA_PATH = "data-path"


class DeployedClientApp(ClientApp):
    """Builds the experiment's ClientApp for each message, as the context of the message says."""

    def __init__(self, experiment_file: Path) -> None:
        """Point at the experiment of the bundle; it is read with the first message."""
        super().__init__()
        self._experiment_file = experiment_file

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message.

        Raises:
            FlSimError: If the experiment cannot be run here; Flower makes an error reply of it.
        """
        experiment = with_own_data(read_experiment(self._experiment_file), context.node_config)
        reference = str(context.run_config[CLIENT_APP])
        client_app: ClientApp = load_reference(reference, kind="client app")(experiment)
        return client_app(message, context)


def with_own_data(experiment: Experiment, node_config: Mapping[str, object]) -> Experiment:
    """Put the path of a SuperNode's own data into the place of the server's."""
    if DATA_PATH not in node_config:
        return experiment
    options = {**experiment.data.options, "path": str(node_config[DATA_PATH])}
    return replace(experiment, data=replace(experiment.data, options=options))
