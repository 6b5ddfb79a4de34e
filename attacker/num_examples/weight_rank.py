"""The number of images as the rank of the first fully connected layer's update.

    dW = sum over steps and images of  c_i delta_i h_i^T         one outer product for each image and visit

As long as each image is visited once (FedSGD, or one local epoch) the rank is the number of images, however the batches
were drawn and however the layers below moved in between: up to the number of units that were active for any image.
Further epochs repeat each outer product a little changed; for a few images these changes stay far below the images'
own directions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.attack import DoesNotApplyError
from attacker.layer_inputs import first_linear, tensor_name
from attacker.observation import Observation
from fl_sim.records import Algorithm

# Rounding moves an entry by at most half a unit in the last place; this covers what a hundred steps add up.
_ROUNDINGS = 8.0
# What separates a singular value of the images from the largest of a defense's noise; nearer, it is noise itself.
_CLEARLY = 3.0
# A square matrix has one or two small singular values by chance; a floor of noise is made of more.
_SHARE_OF_A_FLOOR = 0.1
_VALUES_OF_A_FLOOR = 5
# Units that were active for the same one or two images have dependent updates, so that the rank can stop short of the
# number of active units: by 2 of 77 in a trained network. Nearer than this, it is no count.
_MARGIN = 0.1
# Of eight clients on which this was tuned, up to four images left a gap of more than 8 behind the last of them at
# E = 10, and none wider before; of seven images, some had theirs behind the sixth.
_WIDE_GAP = 8.0
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRank:
    """What the singular values say.

    Attributes:
        directions: Singular values that clearly stand out of the rounding, and of noise if there is a floor of it.
        limit: The most that could be seen: units, or features, with an update at all.
        noisy: Whether there is a floor of noise.
        complete: Whether further directions would have been seen.
        gap: Singular values in front of the first wide gap, at most 4; 0 if there is none.
    """

    directions: int
    limit: int
    noisy: bool
    complete: bool
    gap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The singular values from which N_c is counted.

    Attributes:
        values: (F,), of falling size, of the update's rows and columns that moved at all.
        rounding: What floating-point numbers alone can make; values above it stand out.
        rank: What the values say.
    """

    values: Tensor
    rounding: float
    rank: WeightRank


def weight_rank(observation: Observation) -> WeightRank:
    """Count the directions of the update of the first fully connected layer's weight.

    Args:
        observation: The update; N_c is not looked at.

    Raises:
        DoesNotApplyError: If the model has no fully connected layer, or it has no update.

    References:
        This project. The outer products: Phong et al., Privacy-Preserving Deep Learning via Additively Homomorphic
        Encryption, IEEE TIFS 2018, Sec. III. The floor: Marchenko and Pastur, Math. USSR-Sbornik 1, 1967.
    """
    return weight_spectrum(observation).rank


def weight_spectrum(observation: Observation) -> Spectrum:
    """Return the singular values of the update of the first fully connected layer's weight, with their count.

    Args:
        observation: The update; N_c is not looked at.

    Raises:
        DoesNotApplyError: If the model has no fully connected layer, or it has no update.
    """
    layer = first_linear(observation.model)
    weight = tensor_name(layer, "weight")
    update = observation.delta[weight].double().nan_to_num(0.0, 0.0, 0.0)
    rounding = _rounding(observation, weight)
    # Units that are inactive for every image have no update: they are no places where images could show.
    moved = update.abs() > _ROUNDINGS * rounding
    update = update[moved.any(dim=1)][:, moved.any(dim=0)]
    limit = min(update.shape)
    if not limit:
        raise DoesNotApplyError(f"{weight} has no update")
    values = torch.linalg.svdvals(update)
    least = _ROUNDINGS * rounding * _edge(update)
    return Spectrum(values=values, rounding=least, rank=_count(values, update, least))


def _count(values: Tensor, update: Tensor, least: float) -> WeightRank:
    limit, directions = len(values), int((values > least).sum())
    if directions == limit and (floor := _floor(values, update)) is not None:
        # How many more directions lie below the floor, nobody sees.
        clear = int((values > _CLEARLY * floor).sum())
        return WeightRank(directions=clear, limit=limit, noisy=True, complete=False, gap=0)
    complete = directions < (1.0 - _MARGIN) * limit
    return WeightRank(directions=directions, limit=limit, noisy=False, complete=complete, gap=_first_gap(values))


def _rounding(observation: Observation, weight: str) -> float:
    """Return the standard deviation that floating-point numbers leave in an entry of the update."""
    update = observation.delta[weight]
    resolution = torch.finfo(update.dtype).eps / math.sqrt(12.0)
    if observation.algorithm is Algorithm.FEDSGD:
        return resolution * float(update.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    # Weights were sent, and the update is a small difference of them; each local step has rounded anew.
    return resolution * float(observation.global_parameters[weight].abs().amax())


def _edge(matrix: Tensor) -> float:
    """Return the largest singular value of independent noise of standard deviation 1, in a matrix of this shape."""
    return math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1])


def _floor(values: Tensor, update: Tensor) -> float | None:
    """Return the upper edge of a floor of noise; ``None`` if the smallest singular values do not look like one.

    Independent noise has all its singular values between sigma (sqrt(F) - sqrt(H)) and sigma (sqrt(F) + sqrt(H)).
    """
    spread = abs(math.sqrt(update.shape[0]) - math.sqrt(update.shape[1]))
    if not spread:
        return None
    edge = float(values[-1]) / spread * _edge(update)
    enough = max(_VALUES_OF_A_FLOOR, _SHARE_OF_A_FLOOR * len(values))
    return edge if int((values <= edge).sum()) >= enough else None


def _first_gap(values: Tensor) -> int:
    """Return how many singular values, of falling size, stand in front of the first wide gap among the largest."""
    following = torch.cat([values[1:], values.new_zeros(1)])
    wide = (values > _WIDE_GAP * following)[:_FEW].nonzero()
    return int(wide[0]) + 1 if len(wide) else 0
