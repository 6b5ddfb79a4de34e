"""The wire format: Flower records to tensors and back, used by both ends.

A reply carries one ArrayRecord ``arrays`` (trainable tensors and buffers, under the names of the model's state dict)
and one MetricRecord ``metrics`` with ``num-examples``. What arrives is checked here before anything is done with it.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fl_sim.records import Algorithm, ClientUpdate

ARRAYS = "arrays"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
IDENTITY = "identity"
PARTITION_ID = "partition-id"
# Under secure aggregation: records of Flower's older interface, and a metric for each tensor that was clipped.
LEGACY_METRICS = "fitres.metrics"
LEGACY_NUM_EXAMPLES = "fitres.num_examples"
BEYOND_RANGE = "beyond-range/"


class BadReplyError(Exception):
    """A reply cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """Names, shapes and dtypes of the tensors of a model; the values are tensors on the meta device.

    Attributes:
        parameters: Trainable tensors, in order.
        buffers: Persistent buffers, in order.
        state_names: All of them in the order of the state dict, as other apps number their arrays.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    state_names: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelLayout":
        """Read the layout off a model."""
        state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
        parameters = [name for name, _ in model.named_parameters()]
        return cls(
            parameters={name: state[name] for name in parameters},
            buffers={name: tensor for name, tensor in state.items() if name not in parameters},
            state_names=tuple(state),
        )


def pack_arrays(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack trainable tensors and buffers into one record."""
    return ArrayRecord(OrderedDict({**tensors, **buffers}))


def unpack_arrays(record: ArrayRecord, layout: ModelLayout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a record into trainable tensors and buffers, in the model's order and dtypes, as a client loads them.

    Raises:
        BadReplyError: If the names are not those of the model.
    """
    expected = {*layout.parameters, *layout.buffers}
    found = set(record.keys())
    if expected != found:
        raise BadReplyError(
            f"expected the tensors of the model, got {sorted(found - expected)} too many "
            f"and {sorted(expected - found)} missing"
        )

    def unpack(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(record[name].numpy()).to(like.dtype) for name, like in names.items()}

    return unpack(layout.parameters), unpack(layout.buffers)


def pack_reply(
    tensors: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    *,
    num_examples: int,
    metrics: Mapping[str, float],
    reply_to: Message,
) -> Message:
    """Build a client's answer to a training message."""
    content = RecordDict(
        {
            ARRAYS: pack_arrays(tensors, buffers),
            METRICS: MetricRecord({NUM_EXAMPLES: num_examples, **metrics}),
        }
    )
    return Message(content, reply_to=reply_to)


def unpack_reply(
    message: Message,
    *,
    server_round: int,
    client_id: int,
    algorithm: Algorithm,
    layout: ModelLayout,
) -> ClientUpdate:
    """Check a reply and turn it into a `ClientUpdate`.

    Args:
        message: The reply.
        server_round: The round it answers.
        client_id: Who sent it, as the server knows it.
        algorithm: What the tensors are.
        layout: The model; names, shapes and dtypes must agree with it.

    Raises:
        BadReplyError: If anything about the reply is not as it should be.
    """
    if message.has_error():
        raise BadReplyError(f"the client failed: {message.error.reason}")
    content = message.content
    if list(content.array_records) != [ARRAYS] or list(content.metric_records) != [METRICS]:
        raise BadReplyError(
            f"expected one ArrayRecord {ARRAYS!r} and one MetricRecord {METRICS!r}, "
            f"got {sorted(content.array_records)} and {sorted(content.metric_records)}"
        )
    metrics = dict(content.metric_records[METRICS])
    num_examples = metrics.pop(NUM_EXAMPLES, None)
    if not isinstance(num_examples, int) or num_examples < 1:
        raise BadReplyError(f"{NUM_EXAMPLES} must be a whole number >= 1, got {num_examples!r}")
    record = content.array_records[ARRAYS]
    tensors, buffers = unpack_arrays(record, layout)
    for name, like in {**layout.parameters, **layout.buffers}.items():
        found = torch.from_numpy(record[name].numpy())
        if found.shape != like.shape or found.dtype != like.dtype:
            raise BadReplyError(
                f"tensor {name!r}: expected {tuple(like.shape)} {like.dtype}, got {tuple(found.shape)} {found.dtype}"
            )
        if not bool(torch.isfinite(found).all()):
            raise BadReplyError(f"tensor {name!r} holds values that are not finite")
    return ClientUpdate(
        server_round=server_round,
        client_id=client_id,
        num_examples=num_examples,
        algorithm=algorithm,
        tensors=tensors,
        buffers=buffers,
        metrics=finite_numbers(metrics),
    )


def finite_numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return those of a client's further numbers that are finite numbers; nothing rests on the others."""
    return {
        name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def pack_identity(partition_id: int, *, reply_to: Message) -> Message:
    """Build a client's answer to the question who it is."""
    return Message(RecordDict({IDENTITY: ConfigRecord({PARTITION_ID: partition_id})}), reply_to=reply_to)


def unpack_identity(message: Message) -> int:
    """Return the partition id of an identity reply.

    Raises:
        BadReplyError: If the client failed or sent something else.
    """
    if message.has_error():
        raise BadReplyError(f"the client failed: {message.error.reason}")
    record = message.content.config_records.get(IDENTITY)
    partition_id = None if record is None else record.get(PARTITION_ID)
    if not isinstance(partition_id, int):
        raise BadReplyError(f"expected a partition id, got {partition_id!r}")
    return partition_id
