"""The client of the federation: an ordinary Flower ClientApp.

    unpack -> load the partition -> train -> defend -> pack

`build_client_app` serves the simulation engines; the module's ``app`` is what ``flwr run .`` loads.
"""

from collections.abc import Callable, Mapping

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.defenses import DEFENSES, Defense, chain
from clients.local_training import gradient_on, train_locally
from clients.secure_aggregation import answer_masked
from fl_sim.app_config import experiment_of
from fl_sim.batch_order import batch_order_generator
from fl_sim.config import Experiment
from fl_sim.datasets import pixels
from fl_sim.federated_data import load_federated_data
from fl_sim.messages import ARRAYS, PARTITION_ID, ModelLayout, pack_identity, pack_reply, unpack_arrays
from fl_sim.models import MODELS, without_trained_weights
from fl_sim.options import build
from fl_sim.parameters import add, subtract
from fl_sim.records import Algorithm
from fl_sim.seeds import generator


def build_client_app(experiment: Experiment) -> ClientApp:
    """Return a ClientApp for one experiment.

    Args:
        experiment: The validated experiment.
    """
    return _client_app(lambda context: experiment)


def build_defense(experiment: Experiment) -> Defense:
    """Return the experiment's chain of defenses.

    Raises:
        ConfigError: For an unknown defense or a hyper-parameter that does not fit.
    """
    return chain(
        [
            build(DEFENSES[defense.name], defense.options, where=f"defenses.{position}.options")
            for position, defense in enumerate(experiment.defenses)
        ]
    )


def _client_app(find_experiment: Callable[[Context], Experiment]) -> ClientApp:
    client_app = ClientApp()

    @client_app.query()
    def identify(message: Message, context: Context) -> Message:
        return pack_identity(_client_id(context), reply_to=message)

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        experiment, client_id = find_experiment(context), _client_id(context)
        secure = experiment.secure_aggregation()
        if secure is None:
            return _train(message, experiment, client_id)
        return answer_masked(
            message,
            context,
            lambda message, context: _train(message, experiment, client_id),
            options=secure,
            seed=experiment.seed,
            client_id=client_id,
        )

    return client_app


app = _client_app(experiment_of)


def _client_id(context: Context) -> int:
    return int(context.node_config[PARTITION_ID])


def _train(message: Message, experiment: Experiment, client_id: int) -> Message:
    torch.set_num_threads(1)  # clients run side by side; the sums must not depend on how many
    server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
    data = load_federated_data(experiment.data, experiment.seed)
    images, labels = pixels(data.images(client_id)), data.labels(client_id)
    model = build(
        MODELS[experiment.model.name],
        without_trained_weights(MODELS[experiment.model.name], experiment.model.options),  # the server sent them
        where="model.options",
        dataset=data.dataset.spec,
        generator=generator(experiment.seed, "model-initialisation"),
    )
    layout = ModelLayout.of(model)
    parameters, buffers = unpack_arrays(message.content.array_records[ARRAYS], layout)
    model.load_state_dict({**parameters, **buffers})
    model.train()

    update: Mapping[str, Tensor]
    metrics: dict[str, float] = {}
    if experiment.federation.algorithm is Algorithm.FEDSGD:
        update = gradient_on(model, images, labels)
    else:
        batch_order = batch_order_generator(experiment.seed, client_id, server_round)
        metrics["train-loss"] = train_locally(model, images, labels, experiment.training, generator=batch_order)
        update = subtract(_parameters_of(model), parameters)

    defended = build_defense(experiment)(
        update, num_examples=len(labels), generator=generator(experiment.seed, "defense", client_id, server_round)
    )
    tensors = defended
    if experiment.federation.algorithm is Algorithm.FEDAVG:
        # Adding back what was subtracted would round: an untouched update leaves as the very weights it came from.
        tensors = _parameters_of(model) if defended is update else add(parameters, defended)
    return pack_reply(
        tensors,
        {name: model.state_dict()[name] for name in layout.buffers},
        num_examples=len(labels),
        metrics=metrics,
        reply_to=message,
    )


def _parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
