"""Messages of an app that is not ours: arrays and numbers under whatever names, by its own rules.

What is sent and what comes back are matched with the model by `fl_sim.parameter_files`: by name, or by order where an
app numbers its arrays (``ArrayRecord(list_of_arrays)``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fl_sim.errors import ConfigError
from fl_sim.messages import BadReplyError, ModelLayout, finite_numbers
from fl_sim.parameter_files import Fitted, fit
from fl_sim.records import Algorithm, ClientUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignMessages:
    """How an app words its training messages.

    Attributes:
        layout: The model.
        algorithm: What clients send: weights or gradients.
        num_examples_key: The metric that holds N_c.
        client_key: The metric in which a client says its number, or ``None``.
        arrays_key: The ArrayRecord to read where a message has several, or ``None`` for its only one.
    """

    layout: ModelLayout
    algorithm: Algorithm
    num_examples_key: str
    client_key: str | None = None
    arrays_key: str | None = None

    def read_sent(self, record: ArrayRecord) -> Fitted:
        """Return the weights that were sent out.

        Raises:
            ConfigError: If they are not the model's.
        """
        return fit(_tensors(record), self.layout, where="the arrays that the server sends")

    def read_reply(self, reply: Message, *, server_round: int, client_id: int, sent: Fitted) -> ClientUpdate:
        """Return a client's update.

        Raises:
            BadReplyError: If the reply is an error, or not what this app's replies were said to be.
        """
        metrics = self.metrics(reply)
        num_examples = metrics.pop(self.num_examples_key, None)
        if not isinstance(num_examples, int | float) or num_examples < 1 or num_examples != int(num_examples):
            raise BadReplyError(f"{self.num_examples_key} must be a whole number >= 1, got {num_examples!r}")
        is_gradient = self.algorithm is Algorithm.FEDSGD
        try:
            tensors = _tensors(self.arrays(reply))
            found = fit(tensors, self.layout, where="the client's arrays", only_trainable=is_gradient)
        except ConfigError as error:
            raise BadReplyError(str(error)) from error
        if not is_gradient and found.has_buffers != sent.has_buffers:
            raise BadReplyError("expected buffers both ways or none, got them one way only")
        return ClientUpdate(
            server_round=server_round,
            client_id=client_id,
            num_examples=int(num_examples),
            algorithm=self.algorithm,
            tensors=found.parameters,
            buffers=found.buffers or sent.buffers,
            metrics=finite_numbers(metrics),
        )

    def arrays(self, message: Message) -> ArrayRecord:
        """Return the record that holds the model.

        Raises:
            BadReplyError: If there is none, or several and nobody said which.
        """
        return self.arrays_item(message)[1]

    def arrays_item(self, message: Message) -> tuple[str, ArrayRecord]:
        """Return that record with its name; see `arrays`."""
        records = message.content.array_records
        if self.arrays_key is not None and self.arrays_key in records:
            return self.arrays_key, records[self.arrays_key]
        if len(records) != 1:
            raise BadReplyError(f"expected one ArrayRecord, got {sorted(records) or 'none'}; say arrays_key")
        return next(iter(records.items()))

    def metrics(self, reply: Message) -> dict[str, object]:
        """Return all numbers of a reply.

        Raises:
            BadReplyError: If the client failed.
        """
        if reply.has_error():
            raise BadReplyError(f"the client failed: {reply.error.reason}")
        return {name: value for record in reply.content.metric_records.values() for name, value in record.items()}


@dataclass(slots=True)
class ClientNumbers:
    """Which number a node's client has in the recording.

    With a key, clients say it in their replies, and are believed: it decides under which number they are recorded, and
    nothing else. Without, nodes are numbered as they appear, by rising node id, which Flower draws anew in each run.
    """

    messages: ForeignMessages
    numbers: dict[int, int] = field(default_factory=dict[int, int])

    def learn(self, sent: Iterable[Message], replies: Iterable[Message]) -> None:
        """Number the nodes that are new."""
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        if self.messages.client_key is None:
            for node in sorted(set(nodes.values()) - self.numbers.keys()):
                self.numbers[node] = len(self.numbers)
            return
        for reply in replies:
            node = nodes.get(reply.metadata.reply_to_message_id)
            number = None if reply.has_error() else self.messages.metrics(reply).get(self.messages.client_key)
            is_number = isinstance(number, int) and number >= 0
            if node is not None and node not in self.numbers and is_number and number not in self.numbers.values():
                assert isinstance(number, int)
                self.numbers[node] = number


def trainable_keys(record: ArrayRecord, layout: ModelLayout) -> frozenset[str]:
    """Return the names of a record's arrays that are trainable tensors, numbered arrays by their order.

    Args:
        record: Arrays that `fit` has matched with the model.
        layout: The model.
    """
    if set(record) & set(layout.state_names):
        return frozenset(layout.parameters) & frozenset(record)
    names = layout.state_names if len(record) == len(layout.state_names) else tuple(layout.parameters)
    return frozenset(key for key, name in zip(sorted(record, key=int), names, strict=True) if name in layout.parameters)


def same_arrays(first: ArrayRecord, second: ArrayRecord) -> bool:
    """Say whether two records hold the same; Flower's strategies send one and the same object to all."""
    if first is second:
        return True
    return list(first) == list(second) and all(first[name].data == second[name].data for name in first)


def _tensors(record: ArrayRecord) -> Mapping[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, array in record.items():
        try:
            tensors[name] = torch.from_numpy(array.numpy().copy())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"array {name!r} cannot be read: {error}") from error
    return tensors
