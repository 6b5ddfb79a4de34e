"""The eavesdropper: a Flower strategy that writes down what the strategy inside it receives.

It stands outermost, so that it sees raw replies even where an inner wrapper changes them (Flower's server-side
differential privacy clips replies in place). It delegates every call unchanged: with it and without it the global model
is the same to the last bit.
"""

from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.client_registry import ClientRegistry
from fl_sim.delegation import WrappedStrategy
from fl_sim.messages import BadReplyError, ModelLayout, unpack_arrays, unpack_reply
from fl_sim.records import Algorithm, ClientUpdate, ReplyFailure, RoundRecord

OnRound = Callable[[RoundRecord], None]


class RecordingStrategy(WrappedStrategy):
    """Wraps any Flower strategy and hands each round to a callable before the inner strategy aggregates it."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        registry: ClientRegistry,
        layout: ModelLayout,
        algorithm: Algorithm,
        on_round: OnRound,
        on_round_start: Callable[[int, int], None] = lambda server_round, num_clients: None,
    ) -> None:
        """Wrap a strategy.

        Args:
            strategy: The strategy that aggregates.
            registry: Who is behind which node.
            layout: Names, shapes and dtypes of the model's tensors.
            algorithm: What clients send.
            on_round: Called with each round, after the last reply and before aggregation.
            on_round_start: Called with the round and the number of clients that are asked.
        """
        super().__init__(strategy)
        self._registry = registry
        self._layout = layout
        self._algorithm = algorithm
        self._on_round = on_round
        self._on_round_start = on_round_start
        self._sent_arrays = ArrayRecord()
        self._sent_messages: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to whom, and delegate."""
        self._sent_messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent_arrays = arrays
        self._on_round_start(server_round, len(self._sent_messages))
        return self._sent_messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the raw replies, and delegate."""
        received = list(replies)
        self._on_round(self._record(server_round, received))
        return super().aggregate_train(server_round, received)

    def _record(self, server_round: int, replies: list[Message]) -> RoundRecord:
        parameters, buffers = unpack_arrays(self._sent_arrays, self._layout)

        def read(reply: Message, client_id: int) -> ClientUpdate:
            return unpack_reply(
                reply,
                server_round=server_round,
                client_id=client_id,
                algorithm=self._algorithm,
                layout=self._layout,
            )

        clients = [self._registry.clients[sent.metadata.dst_node_id] for sent in self._sent_messages]
        return round_record(
            server_round, parameters, buffers, zip(self._sent_messages, clients, strict=True), replies, read
        )


def round_record(
    server_round: int,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    sent: Iterable[tuple[Message, int]],
    replies: Iterable[Message],
    read: Callable[[Message, int], ClientUpdate],
) -> RoundRecord:
    """Turn the raw replies of a round into what is recorded: each client asked is an update or a failure.

    Args:
        server_round: The round.
        parameters: w_t, the trainable tensors sent out.
        buffers: The others.
        sent: The messages, and whom each went to.
        replies: What came back, in any order.
        read: Turns a client's reply into its update, or raises `BadReplyError`.
    """
    # An error reply does not always carry the node's own id, but it always names the message that it answers.
    answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
    updates: list[ClientUpdate] = []
    failures: list[ReplyFailure] = []
    for message, client_id in sent:
        reply = answers.get(message.metadata.message_id)
        try:
            if reply is None:
                raise BadReplyError("no reply before the deadline")
            updates.append(read(reply, client_id))
        except BadReplyError as error:
            failures.append(ReplyFailure(server_round=server_round, client_id=client_id, reason=str(error)))
    return RoundRecord(
        server_round=server_round,
        global_parameters=parameters,
        global_buffers=buffers,
        updates=tuple(sorted(updates, key=lambda update: update.client_id)),
        failures=tuple(sorted(failures, key=lambda failure: failure.client_id)),
    )
