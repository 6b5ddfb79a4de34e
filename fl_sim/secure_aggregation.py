"""Rounds under SecAgg+: Flower's own protocol, between our draw of clients and our step.

    draw clients  ->  setup, share keys, collect masked vectors, unmask  ->  mean of the replies  ->  next global model

Flower offers the protocol for its older interface only (`SecAggPlusWorkflow` and `LegacyContext`); that stands here, in
the recorder and in `clients.secure_aggregation`, and nowhere else. What the vectors mean is not the protocol's concern:
weights for FedAvg, gradients for FedSGD, as in any other run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common import FitIns, FitRes, Parameters, Scalar, parameters_to_ndarrays
from flwr.server import ClientManager, LegacyContext
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.serverapp import Grid

from fl_sim.global_randomness import seeded_global_randomness
from fl_sim.secure_aggregation_recorder import SecureAggregationRecorder
from fl_sim.server_privacy import SecureAggregation
from fl_sim.strategies import ReproducibleFedAvg

Evaluate = Callable[[int, ArrayRecord], object]

# A mean of whole numbers is a multiple of 1 / N; quantisation must not pull 2 down to 1.99.
_DECIMALS_OF_COUNTERS = 3


def run_secure_rounds(
    grid: Grid,
    arrays: ArrayRecord,
    *,
    strategy: ReproducibleFedAvg,
    options: SecureAggregation,
    recorder: SecureAggregationRecorder,
    num_rounds: int,
    num_done: int = 0,
    timeout: float,
    evaluate: Evaluate,
) -> ArrayRecord:
    """Train under secure aggregation.

    Args:
        grid: The grid, which the recorder wraps.
        arrays: The global model to begin with, in the model's order.
        strategy: Draws the clients and takes the step.
        options: The protocol's numbers, ``max_weight`` filled in.
        recorder: Is told of all that the server sees.
        num_rounds: Rounds of training, those included that were done before.
        num_done: Rounds that were done before.
        timeout: Seconds to wait for the replies of each of the four stages.
        evaluate: Called with the round and the global model, before the first round and after each.

    Returns:
        The global model after the last round. A round that too few clients finish leaves it as it was.
    """
    workflow = _Workflow(
        num_shares=1.0 if options.num_shares == 1 else options.num_shares,
        reconstruction_threshold=options.reconstruction_threshold,
        max_weight=float(options.max_weight or math.nan),
        clipping_range=float(options.clipping_range),
        quantization_range=options.quantization_range,
        modulus_range=options.modulus_range,
        timeout=timeout,
    )
    listening = recorder.listen_to(grid)
    evaluate(num_done, arrays)
    for server_round in range(num_done + 1, num_rounds + 1):
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), listening))
        recorder.start_round(server_round, arrays, [message.metadata.dst_node_id for message in messages])
        # Who neighbours whom is shuffled by the process-wide generator.
        with seeded_global_randomness(strategy.seed, "secure-aggregation-neighbours", server_round):
            mean = workflow.run(listening, server_round, messages, arrays)
        recorder.end_round(mean)
        if mean is not None and recorder.num_masked >= strategy.min_replies:
            arrays = strategy.next_global(mean)
        evaluate(server_round, arrays)
    return arrays


class _Workflow(SecAggPlusWorkflow):
    """Flower's protocol with two changes.

    The message that asks for a masked vector is our ordinary training message; and a client that drops out before it
    has shared its keys is left out, where Flower's own version halts the round when it comes to unmasking.
    """

    def run(
        self, grid: Grid, server_round: int, messages: Sequence[Message], arrays: ArrayRecord
    ) -> ArrayRecord | None:
        """Run one round and return the mean of the replies, or ``None`` where too few clients stayed.

        Args:
            grid: The grid.
            server_round: The round.
            messages: What a client would be sent without secure aggregation, one for each.
            arrays: Names and shapes of the tensors in a reply.
        """
        self._messages = {message.metadata.dst_node_id: message for message in messages}
        strategy = _Legacy([GridClientProxy(node_id, grid, grid.run.run_id) for node_id in self._messages])
        context = LegacyContext(
            Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            strategy=strategy,
        )
        context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: server_round})
        context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
        self(grid, context)
        if strategy.mean is None:
            return None
        return ArrayRecord(
            {
                name: Array(_in_kind_of(mean.reshape(like.shape), like.numpy()))
                for (name, like), mean in zip(arrays.items(), strategy.mean, strict=True)
            }
        )

    def setup_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        """Agree on the numbers, and put our training messages in place of the older ones."""
        succeeded = super().setup_stage(grid, context, state)
        # One record for each client: the protocol adds its own part to it.
        state.nid_to_fitins = {
            node_id: RecordDict(dict(message.content.items())) for node_id, message in self._messages.items()
        }
        return succeeded

    def share_keys_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        """Share keys among those who sent theirs, and go on with those who shared."""
        state.sampled_node_ids = state.active_node_ids
        succeeded = super().share_keys_stage(grid, context, state)
        state.sampled_node_ids = state.active_node_ids
        state.nid_to_neighbours = {
            node_id: state.nid_to_neighbours[node_id] & state.active_node_ids for node_id in state.active_node_ids
        }
        return succeeded


class _Legacy(FedAvg):
    """What the older interface asks of a strategy: whom to ask, and where to put the mean."""

    def __init__(self, proxies: Sequence[ClientProxy]) -> None:
        super().__init__()
        self._proxies = proxies
        self.mean: list[np.ndarray[Any, Any]] | None = None

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        nothing = FitIns(Parameters(tensors=[], tensor_type=""), {})
        return [(proxy, nothing) for proxy in self._proxies]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: Sequence[Any],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        if results:  # the same mean stands in each
            self.mean = cast(list[np.ndarray[Any, Any]], parameters_to_ndarrays(results[0][1].parameters))
        return None, {}


def _in_kind_of(mean: np.ndarray[Any, Any], like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if np.issubdtype(like.dtype, np.floating):
        return mean.astype(like.dtype)
    return np.asarray(np.round(mean, _DECIMALS_OF_COUNTERS))
