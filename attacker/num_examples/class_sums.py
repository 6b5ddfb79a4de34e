"""What a defense left in an update, without knowing the defense: logit gradients sum to 0 over the classes.

    sum_k (p_k - [k = y]) = 0        =>    the update of the last layer has column sums of 0, up to rounding

Noise, pruning, signs and coarse rounding break that; scaling, and so the clipping of a whole update, does not.
"""

import math

import torch

from attacker.labels.last_layer import LastLayer
from attacker.observation import Observation

# Of the deviation of an entry; what rounding leaves is below a thousandth of it unless the update itself is.
_UNALTERED = 1e-3
_ROUNDINGS = 10.0


def noise_of_last_layer(observation: Observation, layer: LastLayer) -> float:
    """Return the standard deviation of what keeps the class sums of the last layer's weight from 0, for an entry.

    Exact for independent noise; rounding alone gives a small number, not 0.
    """
    update = observation.delta[layer.weight].double().nan_to_num(0.0, 0.0, 0.0)
    return math.sqrt(float(update.sum(dim=0).square().mean()) / len(update))


def is_altered(observation: Observation, layer: LastLayer) -> bool:
    """Return whether the class sums are further from 0 than rounding explains."""
    update = observation.delta[layer.weight].nan_to_num(0.0, 0.0, 0.0)
    entry = float(update.double().square().mean().sqrt())
    weight = float(observation.global_parameters[layer.weight].abs().amax())
    rounding = torch.finfo(update.dtype).eps * max(weight, float(update.abs().amax()))
    return noise_of_last_layer(observation, layer) > max(_UNALTERED * entry, _ROUNDINGS * rounding)
