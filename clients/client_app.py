"""The client of the federation: an ordinary Flower ClientApp.

    unpack -> load the partition -> train -> defend -> pack

A defense may also act inside training, on the gradient of each local step (`clients.defenses.places`).
`build_client_app` serves the simulation engines; the module's ``app`` is what ``flwr run .`` loads.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from clients.build_defenses import build_defenses, draws_batches_at_random
from clients.defenses import ClientDefenses, PrivateGradientDefense, chain
from clients.local_training import StepGradient, epoch_batches, poisson_batches, train_locally
from clients.secure_aggregation import answer_masked
from fl_sim.app_config import experiment_of
from fl_sim.batch_order import batch_order_generator
from fl_sim.config import Experiment
from fl_sim.datasets import pixels
from fl_sim.federated_data import FederatedData, load_federated_data
from fl_sim.messages import ARRAYS, PARTITION_ID, ModelLayout, pack_identity, pack_reply, unpack_arrays
from fl_sim.models import MODELS, without_trained_weights
from fl_sim.options import build
from fl_sim.parameters import add, subtract
from fl_sim.records import Algorithm
from fl_sim.seeds import generator

_PARTICIPATION = "participation"
_NUM_ROUNDS = "rounds"


def build_client_app(experiment: Experiment) -> ClientApp:
    """Return a ClientApp for one experiment.

    Args:
        experiment: The validated experiment.
    """
    return _client_app(lambda context: experiment)


def build_defense(experiment: Experiment) -> ClientDefenses:
    """Return the experiment's defenses, checked against its model.

    Raises:
        ConfigError: As `build_defenses`, and for a model that a defense cannot work with.
    """
    defenses = build_defenses(experiment)
    if defenses.needs_model:
        defenses.check_model(_build_model(experiment, load_federated_data(experiment.data, experiment.seed)))
    return defenses


def _client_app(find_experiment: Callable[[Context], Experiment]) -> ClientApp:
    client_app = ClientApp()

    @client_app.query()
    def identify(message: Message, context: Context) -> Message:
        return pack_identity(_client_id(context), reply_to=message)

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        experiment = find_experiment(context)
        secure = experiment.secure_aggregation()
        if secure is None:
            return _train(message, context, experiment)
        return answer_masked(
            message,
            context,
            lambda message, context: _train(message, context, experiment),
            options=secure,
            seed=experiment.seed,
            client_id=_client_id(context),
        )

    return client_app


app = _client_app(experiment_of)


def _client_id(context: Context) -> int:
    return int(context.node_config[PARTITION_ID])


def _train(message: Message, context: Context, experiment: Experiment) -> Message:
    torch.set_num_threads(1)  # clients run side by side; the sums must not depend on how many
    client_id = _client_id(context)
    server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
    data = load_federated_data(experiment.data, experiment.seed)
    images, labels = pixels(data.images(client_id)), data.labels(client_id)
    model = _build_model(experiment, data)
    layout = ModelLayout.of(model)
    parameters, buffers = unpack_arrays(message.content.array_records[ARRAYS], layout)
    model.load_state_dict({**parameters, **buffers})
    model.train()

    defenses = build_defenses(experiment)
    defenses.check_model(model)
    num_rounds = _count_round(context)  # now: a reply that gets lost has spent its privacy all the same
    step_gradient = _step_gradient(defenses, experiment, client_id, server_round, num_examples=len(labels))
    update: Mapping[str, Tensor]
    metrics: dict[str, float] = {}
    if experiment.federation.algorithm is Algorithm.FEDSGD:
        update, _ = step_gradient(model, images, labels, 0)
    else:
        loss = train_locally(
            model,
            images,
            labels,
            experiment.training,
            generator=batch_order_generator(experiment.seed, client_id, server_round),
            step_gradient=step_gradient,
            batches=poisson_batches if draws_batches_at_random(defenses) else epoch_batches,
        )
        if loss is not None:
            metrics["train-loss"] = loss
        update = subtract(_parameters_of(model), parameters)
    if isinstance(defenses.source, PrivateGradientDefense):
        metrics.update(
            defenses.source.privacy(num_examples=len(labels), training=experiment.training, num_rounds=num_rounds)
        )

    defended = chain(defenses.on_update)(
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


def _step_gradient(
    defenses: ClientDefenses, experiment: Experiment, client_id: int, server_round: int, *, num_examples: int
) -> StepGradient:
    expected_size = min(experiment.training.batch_size or num_examples, num_examples)

    def compute(
        model: nn.Module, images: Tensor, labels: Tensor, step: int
    ) -> tuple[Mapping[str, Tensor], float | None]:
        return defenses.gradient(
            model,
            images,
            labels,
            batch_size=expected_size if draws_batches_at_random(defenses) else len(labels),
            generator=generator(experiment.seed, "defense-in-training", client_id, server_round, step),
        )

    return compute


def _build_model(experiment: Experiment, data: FederatedData) -> nn.Module:
    factory = MODELS[experiment.model.name]
    return build(
        factory,
        without_trained_weights(factory, experiment.model.options),  # the server sent them
        where="model.options",
        dataset=data.dataset.spec,
        generator=generator(experiment.seed, "model-initialisation"),
    )


def _count_round(context: Context) -> int:
    """Return in how many rounds this client has taken part, this one included; Flower keeps the count with the node."""
    record = context.state.metric_records.get(_PARTICIPATION)
    num_rounds = 1 + (0 if record is None else int(cast(int, record[_NUM_ROUNDS])))
    context.state[_PARTICIPATION] = MetricRecord({_NUM_ROUNDS: num_rounds})
    return num_rounds


def _parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
