"""The eavesdropper changes nothing, whatever strategy it wraps, and sees raw replies."""

import pytest
import torch
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedMedian

from clients.client_app import build_client_app
from fl_sim.client_registry import register_clients
from fl_sim.engines.in_process import InProcessGrid, task_identity
from fl_sim.federated_data import load_federated_data
from fl_sim.messages import ModelLayout, pack_arrays
from fl_sim.models import MODELS
from fl_sim.options import build
from fl_sim.parameters import flatten, l2_norm, subtract
from fl_sim.recording import RecordingStrategy
from fl_sim.records import Algorithm
from fl_sim.seeds import generator
from fl_sim.strategies import ReproducibleFedAvg

STRATEGIES = {
    "reproducible": lambda registry, layout: ReproducibleFedAvg(registry=registry, layout=layout, seed=0),
    "fedavg": lambda registry, layout: _all_nodes(FedAvg),
    "fedmedian": lambda registry, layout: _all_nodes(FedMedian),
    "fedadam": lambda registry, layout: _all_nodes(FedAdam),
    "central_dp": lambda registry, layout: DifferentialPrivacyServerSideFixedClipping(
        _all_nodes(FedAvg), noise_multiplier=0.0, clipping_norm=0.01, num_sampled_clients=3
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_with_and_without_it_the_model_is_bit_identical(tiny, name):
    without, _ = _train(tiny(), STRATEGIES[name], record=False)
    with_it, records = _train(tiny(), STRATEGIES[name], record=True)
    assert torch.equal(without, with_it)
    assert [record.server_round for record in records] == [1, 2]
    assert all(len(record.updates) == 3 and not record.failures for record in records)


def test_outermost_it_sees_what_a_wrapper_inside_clips(tiny):
    _, records = _train(tiny(), STRATEGIES["central_dp"], record=True)
    norms = [l2_norm(subtract(update.tensors, records[0].global_parameters)) for update in records[0].updates]
    assert min(norms) > 0.02  # the wrapper clips to 0.01, in place, before its inner strategy aggregates


def _train(experiment, make_strategy, *, record):
    # Flower's own strategies draw from the global random state and sum in order of arrival: both are fixed here.
    data = load_federated_data(experiment.data, experiment.seed)
    model = build(
        MODELS[experiment.model.name],
        experiment.model.options,
        where="model",
        dataset=data.dataset.spec,
        generator=generator(0, "model"),
    )
    layout = ModelLayout.of(model)
    records = []
    with task_identity():
        grid = InProcessGrid(build_client_app(experiment), 3)
        registry = register_clients(grid, 3, timeout=10)
        strategy = make_strategy(registry, layout)
        if record:
            strategy = RecordingStrategy(
                strategy, registry=registry, layout=layout, algorithm=Algorithm.FEDAVG, on_round=records.append
            )
        result = strategy.start(_SortedGrid(grid), pack_arrays(dict(model.named_parameters()), {}), num_rounds=2)
    return flatten(result.arrays.to_torch_state_dict()), records


class _SortedGrid:
    def __init__(self, grid):
        self._grid = grid

    def __getattr__(self, name):
        return getattr(self._grid, name)

    def send_and_receive(self, messages, *, timeout=None):
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return self._grid.send_and_receive(ordered, timeout=timeout)


def _all_nodes(kind):
    return kind(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
