"""Closed form: a fully connected layer gives its input away, weight gradient over bias gradient.

    dL/dW_i = dL/db_i x^T    =>    x = dL/dW_i / dL/db_i    for every unit i with dL/db_i != 0

It holds wherever in a network the layer stands: `linear_inputs` returns what it was fed with. Where it is the first,
that are the images, and with one image it holds for the sum over any number of local steps, since x is then constant.
"""

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError, OnStep, Outcome, Reconstruction, ignore_progress
from attacker.distances import squared_l2
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.layer_inputs import first_linear, inputs_of_layer, tensor_name
from attacker.observation import Observation, mean_gradient

_NOT_FOLLOWED = "does not follow the defenses: the closed form reads the update as it arrives, and simulates nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyticFullyConnected:
    """Reads the input of a fully connected first layer; exact for one image.

    With more images each unit shows the mixture of those that drive it, and a unit that only one image drives shows
    that one. The N distinct candidates on which units agree best and that leave [0, 1] least are returned.

    Attributes:
        distinct_distance: Root mean squared difference, in pixel units, from which two candidates count as distinct.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts. With more
            than one image, which label belongs to which image stays a guess.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1.
        Phong et al., Privacy-Preserving Deep Learning via Additively Homomorphic Encryption, IEEE TIFS 2018, Sec. III.
    """

    distinct_distance: float = 0.05
    label_recovery: str = "automatic"

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: If the distance is not positive.
        """
        if not self.distinct_distance > 0:
            raise ValueError(f"distinct_distance must be > 0, got {self.distinct_distance}")

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`. There are no steps to report.

        Raises:
            DoesNotApplyError: If the first trainable layer is not fully connected, has no bias, or is not fed with the
                pixels, each shifted and scaled.
        """
        started = time.monotonic()
        known, plain = observation.knowledge.defenses, replace(observation.knowledge, defenses=None)
        problem = inversion_problem(replace(observation, knowledge=plain), self.label_recovery, generator)
        weight, bias = _first_layer_gradient(problem)
        offset, slope = _map_from_pixels(problem)
        inputs = _least_squares(weight, bias) if problem.num_images == 1 else _inputs_by_unit(weight, bias)
        candidates = (inputs - offset) / slope
        images = _most_plausible(candidates, problem.num_images, self.distinct_distance)
        images = images.reshape(problem.num_images, *problem.image_shape)
        with torch.no_grad():
            matching_loss = squared_l2(problem.simulate(images, "full"), problem.observed).item()
        return Reconstruction(
            images=images.cpu(),
            labels=problem.labels.cpu(),
            matching_loss=matching_loss,
            losses=torch.zeros(0),
            outcome=Outcome.FINISHED if math.isfinite(matching_loss) else Outcome.NON_FINITE,
            seconds=time.monotonic() - started,
            remarks=(*problem.remarks, *((_NOT_FOLLOWED,) if known else ())),
        )


def linear_inputs(observation: Observation, layer: str, *, distinct_distance: float = 0.05) -> Tensor:
    """Return what a fully connected layer, standing anywhere in the network, was fed with on the client.

    Exact for one image and one gradient. After several local steps the inputs of an inner layer are a weighted mean
    over the steps, since the layers before it move; those of a first layer stay exact. With more images each unit shows
    the mixture of those that drive it; a unit that only one image drives, as ReLUs behind the layer make them, shows
    that one, and the inputs on which units agree best come first. Behind the last layer every image drives every unit.

    Args:
        observation: What the attack sees.
        layer: The module name of a `torch.nn.Linear` with bias that sees each image once, as a vector.
        distinct_distance: Root mean squared difference from which two inputs count as distinct, as a share of the
            typical root mean square of an input. Used with more than one image.

    Returns:
        (M, D), on the device of the update; M <= N_c, and less where fewer distinct inputs show: none at all if the
        gradient of the bias is zero or not finite.

    Raises:
        DoesNotApplyError: If there is no such layer or it has no bias.
        NotGrantedError: If N_c or the recipe of local training is not granted.
        ValueError: If ``distinct_distance`` is not positive.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1.
    """
    if not distinct_distance > 0:
        raise ValueError(f"distinct_distance must be > 0, got {distinct_distance}")
    num_images, gradient = observation.require_num_examples(), mean_gradient(observation)
    linear = [name for name, module in observation.model.named_modules() if isinstance(module, nn.Linear)]
    weight_name, bias_name = tensor_name(layer, "weight"), tensor_name(layer, "bias")
    if layer not in linear or bias_name not in gradient:
        raise DoesNotApplyError(
            f"the closed form needs a fully connected layer with bias, got {layer!r}; fully connected: {linear}"
        )
    weight, bias = gradient[weight_name], gradient[bias_name]
    if not (bool((bias != 0).any()) and bool(weight.isfinite().all() and bias.isfinite().all())):
        return weight[:0]
    if num_images == 1:
        return _least_squares(weight, bias)
    candidates = _inputs_by_unit(weight, bias)
    typical = (torch.linalg.vector_norm(candidates, dim=1) / candidates.shape[1] ** 0.5).median()
    order = _distance_to_nearest(candidates).argsort()
    return _distinct(candidates[order], num_images, distinct_distance * float(typical))


def _first_layer_gradient(problem: InversionProblem) -> tuple[Tensor, Tensor]:
    """Return the mean gradients (H, D) and (H,) of the first trainable layer."""
    name = first_linear(problem.model)
    layer = problem.model.get_submodule(name)
    weight, bias = tensor_name(name, "weight"), tensor_name(name, "bias")
    is_first = next(iter(problem.parameters)) == weight
    if not (isinstance(layer, nn.Linear) and is_first and bias in problem.observed):
        raise DoesNotApplyError(
            "attack 'analytic' needs a first trainable layer that is fully connected and has a bias; the first "
            f"trainable tensor is {next(iter(problem.parameters))!r}; use an optimisation attack"
        )
    return problem.observed[weight], problem.observed[bias]


def _map_from_pixels(problem: InversionProblem) -> tuple[Tensor, Tensor]:
    """Return offset and slope (D,) of the map from pixels to the layer's input, measured on three grey images."""
    grey = problem.mean.new_tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, *problem.image_shape)
    with torch.no_grad():
        inputs, _ = inputs_of_layer(
            problem.model, first_linear(problem.model), problem.parameters, problem.buffers, grey
        )
    black, middle, white = inputs
    slope = white - black
    is_affine = torch.allclose(middle, black + 0.5 * slope, rtol=1e-4, atol=1e-5)
    if not is_affine or len(slope) != grey[0].numel() or not bool((slope != 0).all()):
        raise DoesNotApplyError("attack 'analytic' needs a first layer that is fed with shifted and scaled pixels")
    return black, slope


def _least_squares(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the input (1, D) of a single image: the fit of ``b x^T`` to the weight gradient over all units."""
    energy = bias.square().sum()
    if not energy > 0:
        return torch.zeros_like(weight[:1])
    return ((bias / energy) @ weight).unsqueeze(0)


def _inputs_by_unit(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the inputs (M, D) that the units with a bias gradient show."""
    driven = bias.abs() > 1e-6 * bias.abs().max()
    return weight[driven] / bias[driven, None]


def _most_plausible(candidates: Tensor, num_images: int, distinct_distance: float) -> Tensor:
    """Return (N, D) in [0, 1]: the most plausible distinct candidates (M, D); grey where there are too few.

    Several units that one image alone drives agree on it, while no two mixtures are alike; and mixtures leave [0, 1].
    """
    pictures = candidates.clamp(0.0, 1.0)
    outside = torch.linalg.vector_norm(candidates - pictures, dim=1) / candidates.shape[1] ** 0.5
    order = (outside + _distance_to_nearest(candidates)).argsort()
    chosen = _distinct(pictures[order], num_images, distinct_distance)
    grey = candidates.new_full((num_images - len(chosen), candidates.shape[1]), 0.5)
    return torch.cat([chosen, grey])


def _distance_to_nearest(candidates: Tensor) -> Tensor:
    """Return (M,): the root mean squared difference of each candidate (M, D) from the most similar other one."""
    if len(candidates) < 2:
        return candidates.new_zeros(len(candidates))
    apart = torch.cdist(candidates, candidates, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.fill_diagonal_(torch.inf).amin(dim=1) / candidates.shape[1] ** 0.5


def _distinct(candidates: Tensor, most: int, distance: float) -> Tensor:
    """Return (M, D): the first candidates, ``most`` at the most, that are farther than ``distance`` from each other."""
    root_size = candidates.shape[1] ** 0.5
    chosen: list[Tensor] = []
    for candidate in candidates:
        if all(torch.linalg.vector_norm(candidate - other) > distance * root_size for other in chosen):
            chosen.append(candidate)
        if len(chosen) == most:
            break
    return torch.stack(chosen) if chosen else candidates[:0]
