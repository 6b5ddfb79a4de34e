"""What the server sees, as tensors: the recipe of local training, one reply, one round.

The sign convention of the whole project is fixed here: ``delta = w_c - w_t``. A client that answers with a gradient
(FedSGD) is read as one full-batch step, ``delta = -learning_rate * gradient``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from torch import Tensor

from fl_sim.parameters import scale, subtract

BatchOrder = Literal["random", "static"]


class Algorithm(StrEnum):
    """What a client computes and sends."""

    FEDSGD = "fedsgd"
    """The mean gradient of the loss on all of the client's data, at the global weights."""
    FEDAVG = "fedavg"
    """The weights after E local epochs of mini-batch SGD (McMahan et al. 2017)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """The recipe that every client follows, known to the server that hands it out.

    Attributes:
        epochs: E, the number of local epochs, >= 1.
        batch_size: m, images per local step, >= 1; ``None`` takes all of the client's data in one step.
        learning_rate: eta of local SGD, > 0.
        momentum: Momentum of local SGD in [0, 1), restarted each round.
        order: ``"random"`` shuffles before each epoch, ``"static"`` keeps the client's own order.
    """

    epochs: int = 1
    batch_size: int | None = None
    learning_rate: float = 0.01
    momentum: float = 0.0
    order: BatchOrder = "random"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {self.epochs}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def batches_per_epoch(self, num_examples: int) -> int:
        """Return B_c = ceil(N_c / m); the last batch of an epoch may be smaller."""
        if self.batch_size is None:
            return 1
        return math.ceil(num_examples / self.batch_size)

    def steps(self, num_examples: int) -> int:
        """Return U_c = E * B_c, the number of local SGD steps."""
        return self.epochs * self.batches_per_epoch(num_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredDefense:
    """One link of the clients' chain of defenses, as the app that the server hands out names it.

    Attributes:
        name: A name of DEFENSES.
        options: Its hyper-parameters.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def where(self) -> str:
        """On what it acts: ``"update"``, ``"step"`` or ``"example"``."""
        return str(self.options.get("where", "update"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """Public facts of a data set.

    Attributes:
        image_shape: (C, H, W).
        num_classes: K.
        mean: Mean of each channel in pixel units [0, 1], shape (C,).
        std: Standard deviation of each channel in pixel units, shape (C,).
        class_names: A name for each class, shape (K,).
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUpdate:
    """One reply as the server received it, after any defense of the client.

    Attributes:
        server_round: The round, counted from 1.
        client_id: The client's id, in [0, number of clients).
        num_examples: N_c, sent in clear; the weight of the update in the average.
        algorithm: Says what ``tensors`` are: weights w_c (FedAvg) or a gradient (FedSGD).
        tensors: The trainable tensors by name.
        buffers: The non-trainable tensors by name (BatchNorm statistics).
        metrics: Further numbers that the client sent.
    """

    server_round: int
    client_id: int
    num_examples: int
    algorithm: Algorithm
    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])

    def delta(self, global_parameters: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
        """Return ``w_c - w_t``; a FedSGD gradient counts as one step of ``learning_rate``."""
        return _delta(self.algorithm, self.tensors, global_parameters, learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedReply:
    """What the server sees of one client under secure aggregation, beside the masked vector: numbers in clear.

    Attributes:
        server_round: The round, counted from 1.
        client_id: The client's id.
        num_examples: N_c.
        metrics: Further numbers that the client sent.
    """

    server_round: int
    client_id: int
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatedUpdate:
    """The mean of several replies, of which the server sees nothing else (secure aggregation).

    Attributes:
        server_round: The round, counted from 1.
        num_examples: N_c of each client in the mean, by rising client id: sent in clear, the weights of the mean.
        algorithm: Says what ``tensors`` are.
        tensors: The mean of the weights (FedAvg) or of the gradients (FedSGD), by name, as exact as it was quantised.
        buffers: The mean of the non-trainable tensors.
    """

    server_round: int
    num_examples: Mapping[int, int]
    algorithm: Algorithm
    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients in the mean."""
        return tuple(self.num_examples)

    def delta(self, global_parameters: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
        """Return the mean of ``w_c - w_t``; as `ClientUpdate.delta`."""
        return _delta(self.algorithm, self.tensors, global_parameters, learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFailure:
    """A reply that did not come or could not be used, and why.

    Attributes:
        server_round: The round.
        client_id: The client.
        reason: What went wrong.
        stage: Under secure aggregation the stage at which the client dropped out; ``None`` without it.
    """

    server_round: int
    client_id: int
    reason: str
    stage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """All that the server saw in one round.

    Attributes:
        server_round: The round, counted from 1.
        global_parameters: w_t, the trainable tensors sent out.
        global_buffers: The non-trainable tensors sent out.
        updates: The usable replies, by rising client id; none under secure aggregation.
        failures: The others, by rising client id.
        masked: Under secure aggregation, the replies that came, by rising client id; their vectors stay on disk.
        aggregate: Under secure aggregation, the mean of these; ``None`` if too few clients stayed to unmask it.
    """

    server_round: int
    global_parameters: Mapping[str, Tensor]
    global_buffers: Mapping[str, Tensor]
    updates: tuple[ClientUpdate, ...]
    failures: tuple[ReplyFailure, ...]
    masked: tuple[MaskedReply, ...] = ()
    aggregate: AggregatedUpdate | None = None


def _delta(
    algorithm: Algorithm, tensors: Mapping[str, Tensor], global_parameters: Mapping[str, Tensor], learning_rate: float
) -> dict[str, Tensor]:
    return scale(tensors, -learning_rate) if algorithm is Algorithm.FEDSGD else subtract(tensors, global_parameters)
