"""A masked vector read as if it were an update: what a server would have to do to attack one client behind SecAgg+.

    value = (masked / quantization_range * 2 - 1) * clipping_range * max_weight / N_c

This undoes the quantisation as though there were no mask. The masks are uniform modulo the modulus range, so that what
comes out is noise; `fl-sim attack` never does this, tests do.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_sim.records import Algorithm, ClientUpdate, MaskedReply
from fl_sim.server_privacy import SecureAggregation

_PARAMETERS, _BUFFERS = "parameters/", "buffers/"


def read_as_update(
    reply: MaskedReply, vector: Mapping[str, Tensor], *, options: SecureAggregation, algorithm: Algorithm
) -> ClientUpdate:
    """Return the update that a masked vector would be without its mask.

    Args:
        reply: N_c and metrics, sent in clear.
        vector: ``weight``, ``parameters/<name>`` and ``buffers/<name>``, unsigned integers, as in a recording.
        options: The protocol's numbers, ``max_weight`` filled in.
        algorithm: What clients send.
    """
    limit, steps = options.range_of_values(reply.num_examples), options.quantization_range

    def read(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): ((masked.double() / steps * 2 - 1) * limit).to(torch.float32)
            for name, masked in vector.items()
            if name.startswith(prefix)
        }

    return ClientUpdate(
        server_round=reply.server_round,
        client_id=reply.client_id,
        num_examples=reply.num_examples,
        algorithm=algorithm,
        tensors=read(_PARAMETERS),
        buffers=read(_BUFFERS),
        metrics=reply.metrics,
    )
