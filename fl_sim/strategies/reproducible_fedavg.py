"""Flower's FedAvg, made repeatable to the last bit and robust to single bad replies.

Flower draws nodes with the global random state from random node ids and sums replies in order of arrival; one reply
with a wrong tensor, or with a metric of its own, ends the run. Here clients are drawn by client id from our own seed,
replies are summed by rising client id, and a bad reply is dropped before FedAvg sees it.
"""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fl_sim.client_registry import ClientRegistry
from fl_sim.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    BadReplyError,
    ModelLayout,
    unpack_arrays,
    unpack_reply,
)
from fl_sim.records import Algorithm
from fl_sim.seeds import generator


class ReproducibleFedAvg(FedAvg):
    """Weighted average of client weights (McMahan et al. 2017, Algorithm 1).

    Integer buffers (BatchNorm's batch counter) are averaged like everything else and then truncated to their type.
    """

    algorithm = Algorithm.FEDAVG

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        layout: ModelLayout,
        seed: int,
        clients_per_round: int | None = None,
        min_replies: int = 1,
        before_round: Callable[[], None] = lambda: None,
    ) -> None:
        """Configure the strategy.

        Args:
            registry: Who is behind which node.
            layout: Names, shapes and dtypes of the model's tensors.
            seed: The run seed; decides which clients are drawn.
            clients_per_round: Clients drawn each round; ``None`` takes all.
            min_replies: Usable replies without which a round leaves the global model as it was.
            before_round: Called before the clients of a round are looked up; may change the registry.
        """
        super().__init__()
        self.registry = registry
        self.layout = layout
        self.seed = seed
        self.clients_per_round = clients_per_round
        self.min_replies = min_replies
        self._before_round = before_round
        self._sent: dict[str, Tensor] = {}

    def summary(self) -> None:
        """Stay silent: the recorder tells what there is to tell."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw clients by id and address the global model to them, by rising client id."""
        self._before_round()
        parameters, buffers = unpack_arrays(arrays, self.layout)
        self._sent = {**parameters, **buffers}
        config["server-round"] = server_round
        nodes = [self.registry.nodes[client_id] for client_id in self.draw_clients(server_round)]
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return list(self._construct_messages(content, nodes, MessageType.TRAIN))

    def draw_clients(self, server_round: int) -> tuple[int, ...]:
        """Return the clients of a round, in rising order; the same for the same seed."""
        clients = tuple(self.registry.nodes)
        if self.clients_per_round is None or self.clients_per_round >= len(clients):
            return clients
        order = torch.randperm(len(clients), generator=generator(self.seed, "client-sampling", server_round))
        return tuple(sorted(clients[position] for position in order[: self.clients_per_round].tolist()))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable replies; ``(None, None)`` keeps the global model where there are too few."""
        usable = self.usable_replies(server_round, replies)
        if len(usable) < self.min_replies:
            return None, None
        average, metrics = super().aggregate_train(server_round, [_bare(reply) for reply in usable])
        return (None if average is None else self.next_global(average)), metrics

    def usable_replies(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Return the replies that can be averaged, by rising client id."""
        return sorted(
            (reply for reply in replies if self._is_usable(server_round, reply)),
            key=lambda reply: self.registry.clients[reply.metadata.src_node_id],
        )

    def next_global(self, average: ArrayRecord) -> ArrayRecord:
        """Turn the average of the replies into the next global model, in the model's own dtypes."""
        return ArrayRecord({name: _as_dtype(average[name], self._sent[name]) for name in self._sent})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody: the model is tested centrally."""
        return []

    def _is_usable(self, server_round: int, reply: Message) -> bool:
        client_id = self.registry.clients.get(reply.metadata.src_node_id)
        if client_id is None:
            return False
        try:
            unpack_reply(
                reply,
                server_round=server_round,
                client_id=client_id,
                algorithm=self.algorithm,
                layout=self.layout,
            )
        except BadReplyError:
            return False
        return True


def _bare(reply: Message) -> Message:
    """Return a copy with arrays and weight only: FedAvg ends the run where one client sends other metrics."""
    own = copy.copy(reply)
    weight = reply.content.metric_records[METRICS][NUM_EXAMPLES]
    own.content = RecordDict(
        {ARRAYS: reply.content.array_records[ARRAYS], METRICS: MetricRecord({NUM_EXAMPLES: weight})}
    )
    return own


def _as_dtype(array: Array, like: Tensor) -> Array:
    return Array(np.asarray(array.numpy()).astype(like.numpy().dtype, copy=False))
