"""The number of images as the rank of the first fully connected layer's update.

    dW = sum over steps and images of  c_i delta_i h_i^T         one outer product for each image and visit

As long as each image is visited once (FedSGD, or one local epoch) the rank is the number of images, however the batches
were drawn and however the layers below moved in between: up to the number of units that were active for any image. Further
epochs repeat each outer product a little changed; for a few images these changes stay far below the images' own directions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.layer_inputs import first_linear, tensor_name
from attacker.observation import Observation
from fl_sim.records import Algorithm

# Rounding moves an entry by at most half a unit in the last place; this covers what several steps add up.
_ROUNDINGS = 4.0
# What separates a singular value of the images from the largest of a defense's noise. Nearer, it is mostly noise itself.
_CLEARLY = 3.0
# A square matrix has one or two small singular values by chance; a floor of noise is made of more.
_VALUES_OF_A_FLOOR = 5
# Of eight clients on which this was tuned, up to four images left a gap of more than 8 behind the last of them at E = 10,
# and none wider before; of seven images, some had theirs behind the sixth.
_WIDE_GAP = 8.0
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRank:
    """What the singular values say.

    Attributes:
        directions: Singular values that stand out of the rounding, and of noise if there is a floor of it.
        limit: The most that could be seen: units, or features, with an update at all.
        noisy: Whether there is such a floor; directions below it cannot be seen.
        gap: Singular values in front of the first wide gap, at most 4; 0 if there is none.
    """

    directions: int
    limit: int
    noisy: bool
    gap: int = 0

    @property
    def is_full(self) -> bool:
        """Whether more images would look the same."""
        return self.directions >= self.limit


def weight_rank(observation: Observation) -> WeightRank:
    """Count the directions of the update of the first fully connected layer's weight.

    Args:
        observation: The update; N_c is not looked at.

    Raises:
        DoesNotApplyError: If the model has no fully connected layer.

    References:
        This project. The outer products: Phong et al., Privacy-Preserving Deep Learning via Additively Homomorphic
        Encryption, IEEE TIFS 2018, Sec. III. The floor: Marchenko and Pastur, Math. USSR-Sbornik 1, 1967.
    """
    weight = tensor_name(first_linear(observation.model), "weight")
    update = observation.delta[weight].double().nan_to_num(0.0, 0.0, 0.0)
    rounding = _rounding(observation, weight, update)
    # Units that are inactive for every image have no update: they do not count as places where images could show.
    moved = update.abs() > _ROUNDINGS * rounding
    update = update[moved.any(dim=1)][:, moved.any(dim=0)]
    limit = min(update.shape)
    if not limit:
        return WeightRank(directions=0, limit=0, noisy=False)
    values = torch.linalg.svdvals(update)
    edge = _ROUNDINGS * rounding * _edge(update)
    directions = int((values > edge).sum())
    if directions < limit:
        return WeightRank(directions=directions, limit=limit, noisy=False, gap=_first_gap(values))
    above = _above_a_floor(values, update)
    if above is None:
        return WeightRank(directions=limit, limit=limit, noisy=False, gap=_first_gap(values))
    return WeightRank(directions=above, limit=limit, noisy=True)


def _first_gap(values: Tensor) -> int:
    """Return how many singular values, of falling size, stand in front of the first wide gap among the largest."""
    falls = values[:_FEW] > _WIDE_GAP * torch.cat([values[1 : _FEW + 1], values.new_zeros(1)])[: len(values[:_FEW])]
    return int(falls.nonzero()[0]) + 1 if bool(falls.any()) else 0


def _rounding(observation: Observation, weight: str, update: Tensor) -> float:
    """Return the standard deviation that floating-point numbers leave in an entry of the update."""
    resolution = torch.finfo(observation.delta[weight].dtype).eps / math.sqrt(12.0)
    if observation.algorithm is Algorithm.FEDSGD:
        return resolution * float(update.abs().amax())
    # Weights were sent, and the update is a small difference of them; each local step has rounded anew.
    largest = observation.global_parameters[weight].abs().amax()
    return resolution * float(largest)


def _edge(matrix: Tensor) -> float:
    """Return the largest singular value of independent noise of standard deviation 1, in a matrix of this shape."""
    return math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1])


def _above_a_floor(values: Tensor, update: Tensor) -> int | None:
    """Count the singular values above a floor of noise; ``None`` if the smallest ones do not look like one."""
    spread = abs(math.sqrt(update.shape[0]) - math.sqrt(update.shape[1]))
    if not spread:
        return None
    edge = float(values[-1]) / spread * _edge(update)
    above = int((values > edge).sum())
    if len(values) - above < _VALUES_OF_A_FLOOR or (above and float(values[above - 1]) < _CLEARLY * edge):
        return None
    return above
