"""Central differential privacy by Flower's own wrapper, around the strategies of this project.

    clip each update to C  ->  average with equal weights  ->  + N(0, (z C / n)^2)  ->  the strategy's own step

Flower's wrapper clips ``reply - received`` and averages by the strategy inside it. It is given updates with zeros as
what was received, so that a gradient is clipped as what it is, and equal weights, without which its noise would not
cover a client with many images.
"""

import copy
from collections.abc import Iterable
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy

from fl_sim.errors import ConfigError
from fl_sim.global_randomness import seeded_global_randomness
from fl_sim.messages import ARRAYS, METRICS, NUM_EXAMPLES, ModelLayout
from fl_sim.records import Algorithm
from fl_sim.server_privacy import CentralPrivacy
from fl_sim.strategies.reproducible_fedavg import ReproducibleFedAvg

_UPDATE = "update"
# Flower divides by the norm of an update; this makes it positive and is lost in the rounding of any weight.
_NEGLIGIBLE = np.float32(1e-18)


class CentrallyPrivate(Strategy):
    """Wraps FedAvg or FedSGD; the replies that it receives are left as they are."""

    def __init__(self, strategy: ReproducibleFedAvg, privacy: CentralPrivacy) -> None:
        """Wrap a strategy.

        Args:
            strategy: Draws the clients, checks their replies and takes the step.
            privacy: Clipping and noise.

        Raises:
            ConfigError: If the model has buffers.
        """
        check_private_model(strategy.layout)
        self.strategy = strategy
        self.privacy = privacy
        self.num_releases = 0
        self._sent = ArrayRecord()

    def summary(self) -> None:
        """Stay silent, as the strategy inside."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent, and delegate."""
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average, add noise; ``(None, None)`` keeps the global model where there are too few usable replies."""
        # Flower's wrapper gives up a round for a single failed client: only usable replies get there.
        usable = self.strategy.usable_replies(server_round, replies)
        if len(usable) < self.strategy.min_replies:
            return None, None
        private = DifferentialPrivacyServerSideFixedClipping(
            _EqualMean(),
            noise_multiplier=self.privacy.noise_multiplier,
            clipping_norm=self.privacy.clip_norm,
            num_sampled_clients=len(usable),  # the mean of fewer clients needs more noise
        )
        updates = [self._with_update(reply) for reply in usable]
        zeros = ArrayRecord({_UPDATE: Array(np.zeros_like(_vector(updates[0])))})
        private.configure_train(server_round, zeros, ConfigRecord(), cast(Grid, None))  # tells it what was received
        with seeded_global_randomness(self.strategy.seed, "central-privacy", server_round):
            mean, _ = private.aggregate_train(server_round, updates)
        if mean is None:
            return None, None
        self.num_releases += 1
        return self._next_global(mean[_UPDATE].numpy()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _with_update(self, reply: Message) -> Message:
        """Return a copy of a reply that holds its update as one vector and the weight 1."""
        record = reply.content.array_records[ARRAYS]
        tensors = {name: record[name].numpy() for name in self.strategy.layout.parameters}
        if self.strategy.algorithm is Algorithm.FEDAVG:
            tensors = {name: tensor - self._sent[name].numpy() for name, tensor in tensors.items()}
        vector = np.concatenate([tensor.reshape(-1) for tensor in tensors.values()])
        if not vector.any():
            vector[0] = _NEGLIGIBLE
        own = copy.copy(reply)
        own.content = RecordDict(
            {ARRAYS: ArrayRecord({_UPDATE: Array(vector)}), METRICS: MetricRecord({NUM_EXAMPLES: 1})}
        )
        return own

    def _next_global(self, mean: np.ndarray) -> ArrayRecord:
        average, position = ArrayRecord(), 0
        for name in self.strategy.layout.parameters:
            sent = self._sent[name].numpy()
            update = mean[position : position + sent.size].reshape(sent.shape)
            position += sent.size
            average[name] = Array(np.asarray(sent + update if self.strategy.algorithm is Algorithm.FEDAVG else update))
        return self.strategy.next_global(average)


def check_private_model(layout: ModelLayout) -> None:
    """Refuse a model whose buffers would be published without noise.

    Raises:
        ConfigError: If it has buffers.
    """
    if layout.buffers:
        raise ConfigError(
            f"federation.central_privacy needs a model without buffers, got {next(iter(layout.buffers))!r}: averaged "
            "BatchNorm statistics would be published without noise; choose a model without BatchNorm"
        )


def _vector(message: Message) -> np.ndarray:
    return message.content.array_records[ARRAYS][_UPDATE].numpy()


class _EqualMean(FedAvg):
    """What averages inside Flower's wrapper."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the clients have been asked already."""
        return []
