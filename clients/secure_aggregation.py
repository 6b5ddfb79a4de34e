"""The client's side of SecAgg+: what leaves the client is checked against the range, and masked.

Flower's own mod does the protocol. It expects replies in the form of Flower's older interface, and draws the rounding
of its quantisation from numpy's process-wide generator.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

from fl_sim.global_randomness import seeded_global_randomness
from fl_sim.messages import ARRAYS, BEYOND_RANGE, METRICS, NUM_EXAMPLES
from fl_sim.server_privacy import SecureAggregation

CallNext = Callable[[Message, Context], Message]


def answer_masked(
    message: Message,
    context: Context,
    train: CallNext,
    *,
    options: SecureAggregation,
    seed: int,
    client_id: int,
) -> Message:
    """Answer one message of the protocol; train where it asks for the masked vector.

    Args:
        message: Of any of the four stages.
        context: Keeps keys and shares from stage to stage.
        train: Answers an ordinary training message.
        options: The protocol's numbers, ``max_weight`` filled in.
        seed: The run seed, for the rounding.
        client_id: The client's number.

    Raises:
        ValueError: If the reply cannot be masked: values that are not finite, or N_c above the limit. The client drops
            out of the round.
    """

    def reply_in_older_form(message: Message, context: Context) -> Message:
        return _in_older_form(train(message, context), message, options)

    if message.content.config_records[RECORD_KEY_CONFIGS].get(Key.STAGE) != Stage.COLLECT_MASKED_VECTORS:
        return secaggplus_mod(message, context, reply_in_older_form)  # keys come from the system's own randomness
    server_round = message.content.config_records["config"]["server-round"]
    with seeded_global_randomness(seed, "secure-aggregation-rounding", client_id, str(server_round)):
        return secaggplus_mod(message, context, reply_in_older_form)


def _in_older_form(reply: Message, message: Message, options: SecureAggregation) -> Message:
    numbers = dict(reply.content.metric_records[METRICS])
    num_examples = numbers.pop(NUM_EXAMPLES)
    max_weight = options.max_weight or math.nan
    if not isinstance(num_examples, int) or not num_examples <= max_weight:
        raise ValueError(
            f"num_examples must be at most max_weight = {max_weight:g}, got {num_examples}; "
            "raise federation.secure_aggregation.max_weight"
        )
    record = reply.content.array_records[ARRAYS]
    beyond = beyond_range(record, options.range_of_values(num_examples))
    parameters = ndarrays_to_parameters([np.atleast_1d(array.numpy()) for array in record.values()])
    metrics = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    metrics |= {f"{BEYOND_RANGE}{name}": value for name, value in beyond.items()}
    result = FitRes(
        status=Status(code=Code.OK, message=""),
        parameters=parameters,
        num_examples=num_examples,
        metrics=dict(metrics),
    )
    return Message(fitres_to_recorddict(result, keep_input=False), reply_to=message)


def beyond_range(record: ArrayRecord, limit: float) -> OrderedDict[str, float]:
    """Return the entry of largest magnitude of each tensor that will be clipped.

    Args:
        record: What is about to be masked.
        limit: Largest magnitude that the protocol can carry.

    Raises:
        ValueError: If a value is not finite.
    """
    found: OrderedDict[str, float] = OrderedDict()
    for name, array in record.items():
        values = array.numpy().reshape(-1).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"tensor {name!r} holds values that are not finite")
        if values.size and abs(largest := float(values[np.abs(values).argmax()])) > limit:
            found[name] = largest
    return found
