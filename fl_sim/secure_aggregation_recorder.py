"""The eavesdropper under secure aggregation: it listens at the grid, where the protocol's messages pass.

The other place to stand is `fl_sim.recording`, around a strategy, which secure aggregation does not call. Both hand on
the same `RoundRecord`. Masked vectors are handed on as they arrive and not kept.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.serverapp import Grid
from torch import Tensor

from fl_sim.client_registry import ClientRegistry
from fl_sim.messages import (
    BEYOND_RANGE,
    LEGACY_METRICS,
    LEGACY_NUM_EXAMPLES,
    BadReplyError,
    ModelLayout,
    finite_numbers,
    unpack_arrays,
)
from fl_sim.recording import OnRound
from fl_sim.records import AggregatedUpdate, Algorithm, MaskedReply, ReplyFailure, RoundRecord
from fl_sim.server_privacy import SecureAggregation
from fl_sim.streaming_grid import StreamingGrid

_REFUSED = 0  # Flower's code for "unknown"; the reason says more

OnMaskedVector: TypeAlias = Callable[[int, int, Mapping[str, Tensor]], None]
"""Called with round, client and the masked vector, by the names of a recording's file."""


class SecureAggregationRecorder:
    """Writes down what the server sees: masked vectors, numbers in clear, who dropped out when, and the mean."""

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        layout: ModelLayout,
        algorithm: Algorithm,
        options: SecureAggregation,
        on_round: OnRound,
        on_masked_vector: OnMaskedVector,
        on_round_start: Callable[[int, int], None],
        on_reply: Callable[[Message], None],
        on_warning: Callable[[int, str], None],
    ) -> None:
        """Get ready.

        Args:
            registry: Who is behind which node.
            layout: Names, shapes and dtypes of the model's tensors.
            algorithm: What clients send.
            options: The protocol's numbers, ``max_weight`` filled in.
            on_round: Called with each round, before the global model changes.
            on_masked_vector: Called with each masked vector.
            on_round_start: Called with the round and the number of clients that are asked.
            on_reply: Called with each reply that holds a masked vector, or would have.
            on_warning: Called with the round and a sentence for a person.
        """
        self._registry = registry
        self._layout = layout
        self._algorithm: Algorithm = algorithm
        self._options = options
        self._on_round = on_round
        self._on_masked_vector = on_masked_vector
        self._on_round_start = on_round_start
        self._on_reply = on_reply
        self._on_warning = on_warning
        self._server_round = 0
        self._sent = ArrayRecord()
        self._refused: dict[str, str] = {}
        self._stage = Stage.SETUP
        self._masked: list[MaskedReply] = []
        self._failures: list[ReplyFailure] = []

    @property
    def num_masked(self) -> int:
        """Clients of this round that sent a masked vector."""
        return len(self._masked)

    def listen_to(self, grid: Grid) -> Grid:
        """Return the grid with this recorder at it."""
        return _ListeningGrid(grid, self)

    def start_round(self, server_round: int, arrays: ArrayRecord, node_ids: Sequence[int]) -> None:
        """Begin a round.

        Args:
            server_round: The round.
            arrays: The global model that is sent out.
            node_ids: The clients that are asked.
        """
        self._server_round, self._sent = server_round, arrays
        self._masked, self._failures, self._refused = [], [], {}
        self._on_round_start(server_round, len(node_ids))

    def start_stage(self, messages: Iterable[Message]) -> None:
        """Note what is sent to whom; the stage stands in the messages."""
        for message in messages:
            self._stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])

    def hear(self, reply: Message) -> None:
        """Note a reply as it arrives."""
        if self._stage != Stage.COLLECT_MASKED_VECTORS:
            return
        self._on_reply(reply)
        if reply.has_error():
            return
        try:
            self._hear_masked_vector(self._registry.clients[reply.metadata.src_node_id], reply.content)
        except (BadReplyError, KeyError, TypeError, ValueError) as error:
            self._refused[reply.metadata.reply_to_message_id] = f"the masked vector cannot be used: {error}"

    def reason_to_refuse(self, reply: Message) -> str | None:
        """Return why a reply would spoil the sum, or ``None``; only the form of a masked vector can be checked."""
        return self._refused.get(reply.metadata.reply_to_message_id)

    def _hear_masked_vector(self, client_id: int, content: RecordDict) -> None:
        metrics = finite_numbers(content.config_records[LEGACY_METRICS])
        num_examples = int(cast(int, content.metric_records[LEGACY_NUM_EXAMPLES]["num_examples"]))
        parts = cast(list[bytes], content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS])
        self._on_masked_vector(self._server_round, client_id, _read_vector(parts, self._layout))
        self._masked.append(
            MaskedReply(
                server_round=self._server_round, client_id=client_id, num_examples=num_examples, metrics=metrics
            )
        )
        self._warn_of_clipping(client_id, num_examples, metrics)

    def end_stage(self, messages: Sequence[Message], replies: Sequence[Message]) -> None:
        """Note who dropped out: an error, or no reply before the deadline."""
        # An error reply does not always carry the node's own id, but it always names the message that it answers.
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        for message in messages:
            reply = answers.get(message.metadata.message_id)
            if reply is not None and not reply.has_error():
                continue
            reason = "no reply before the deadline" if reply is None else f"the client failed: {reply.error.reason}"
            self._failures.append(
                ReplyFailure(
                    server_round=self._server_round,
                    client_id=self._registry.clients[message.metadata.dst_node_id],
                    reason=reason,
                    stage=self._stage,
                )
            )

    def end_round(self, mean: ArrayRecord | None) -> None:
        """Hand the round on.

        Args:
            mean: What the server unmasked, or ``None``.
        """
        parameters, buffers = unpack_arrays(self._sent, self._layout)
        masked = tuple(sorted(self._masked, key=lambda reply: reply.client_id))
        self._on_round(
            RoundRecord(
                server_round=self._server_round,
                global_parameters=parameters,
                global_buffers=buffers,
                updates=(),
                failures=tuple(sorted(self._failures, key=lambda failure: failure.client_id)),
                masked=masked,
                aggregate=None if mean is None else self._aggregate(masked, mean),
            )
        )
        if mean is None:
            self._on_warning(
                self._server_round, "too few clients stayed to unmask the sum; the global model is as it was"
            )

    def _aggregate(self, masked: Sequence[MaskedReply], mean: ArrayRecord) -> AggregatedUpdate:
        tensors, buffers = unpack_arrays(mean, self._layout)
        return AggregatedUpdate(
            server_round=self._server_round,
            num_examples={reply.client_id: reply.num_examples for reply in masked},
            algorithm=self._algorithm,
            tensors=tensors,
            buffers=buffers,
        )

    def _warn_of_clipping(self, client_id: int, num_examples: int, metrics: Mapping[str, float]) -> None:
        limit = self._options.range_of_values(num_examples)
        for name, value in metrics.items():
            if name.startswith(BEYOND_RANGE):
                self._on_warning(
                    self._server_round,
                    f"client {client_id}: tensor {name.removeprefix(BEYOND_RANGE)!r} holds {value:.4g}, beyond the "
                    f"{limit:.4g} that secure aggregation can carry, and was clipped; "
                    "raise federation.secure_aggregation.clipping_range",
                )


class _ListeningGrid(StreamingGrid):
    """Tells a recorder of every exchange; everything else is the grid's own."""

    def __init__(self, grid: Grid, recorder: SecureAggregationRecorder) -> None:
        super().__init__(grid, recorder.hear)
        self._recorder = recorder

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send one stage's messages and wait for the replies."""
        sent = list(messages)
        self._recorder.start_stage(sent)
        received = list(super().send_and_receive(sent, timeout=timeout))
        asked = {message.metadata.message_id: message for message in sent}  # sending gives a message its id
        replies: list[Message] = []
        for reply in received:
            reason = self._recorder.reason_to_refuse(reply)
            if reason is not None:
                error = Error(code=_REFUSED, reason=reason)
                reply = Message(error, reply_to=asked[reply.metadata.reply_to_message_id])
            replies.append(reply)
        self._recorder.end_stage(sent, replies)
        return replies


def _read_vector(parts: Sequence[bytes], layout: ModelLayout) -> dict[str, Tensor]:
    """Return a masked vector by the names of a recording's file, half as large as it was sent: integers below 2^32.

    Raises:
        BadReplyError: If it has not the form of a masked reply.
    """
    expected = {"weight": (1,)}
    expected |= {f"parameters/{name}": tuple(tensor.shape) or (1,) for name, tensor in layout.parameters.items()}
    expected |= {f"buffers/{name}": tuple(tensor.shape) or (1,) for name, tensor in layout.buffers.items()}
    arrays = [np.load(io.BytesIO(part), allow_pickle=False) for part in parts]
    if [array.shape for array in arrays] != list(expected.values()):
        raise BadReplyError(f"expected the shapes {list(expected.values())}, got {[array.shape for array in arrays]}")
    for array in arrays:
        if not np.issubdtype(array.dtype, np.integer) or (array.size and (array.min() < 0 or array.max() >= 2**32)):
            raise BadReplyError("expected integers in [0, 2^32)")
    return {name: torch.from_numpy(array.astype(np.uint32)) for name, array in zip(expected, arrays, strict=True)}
