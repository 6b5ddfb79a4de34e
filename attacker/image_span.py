"""Where the features of the private images must lie, as an update tells it.

    dW = sum over steps of  delta_s h(x_s; w_s)^T,    w_s on the way from w_t to w_c

The server knows both ends, and so what lies half-way, where the steps are on average. Features taken there keep much
less outside the span than those at w_t: at the true images a quarter for CIFAR-100, a half for femnist_like_10k, with
E = 10 and m = 5 (benchmarks/feature_drift.py).
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.inversion_problem import InversionProblem
from attacker.layer_inputs import first_linear, inputs_of_layer, tensor_name
from attacker.priors.feature_span import feature_span, update_span, visible_rank
from fl_sim.parameters import Parameters

# Local training turns the features, so that more directions than images carry them: with N = 50 and E = 10 the true
# images keep 0.0024 of their energy outside 50 directions and 0.0007 outside 80, mixtures of two 0.0070 and 0.0055; at
# w_t, femnist_like_10k.
DIRECTIONS_PER_IMAGE = 1.6

# A direction is of use once it stands out of the noise by this factor; nearer to it, it is mostly noise itself. With
# N = 4 and the weakest direction at 10 times the noise's edge the prior gained 9 dB, at 3 times it lost 2 dB.
_CLEARLY = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """The row space of the update of a fully connected layer.

    Attributes:
        problem: What is solved.
        layer: Name of the layer.
        basis: (F, R), orthonormal columns.
        weights: Where features are taken.
    """

    problem: InversionProblem
    layer: str
    basis: Tensor
    weights: Parameters

    def features(self, pixels: Tensor) -> Tensor:
        """Return the layer's inputs (N, F) for pixels (N, C, H, W)."""
        features, _ = inputs_of_layer(self.problem.model, self.layer, self.weights, self.problem.buffers, pixels)
        return features

    def prior(self, features: Tensor) -> Tensor:
        """Return `attacker.priors.feature_span` of features (N, F), shape ()."""
        return feature_span(features, basis=self.basis)


@dataclass(frozen=True, slots=True)
class NoSpan:
    """The update tells no span, for a reason that is said to people."""

    reason: str


def spanned_layer(model: nn.Module, num_images: int) -> str | NoSpan:
    """Name the layer whose update tells the span of so many images, or say why none does."""
    try:
        layer = first_linear(model)
    except DoesNotApplyError:
        return NoSpan("the model has no torch.nn.Linear layer")
    num_units = len(model.get_parameter(tensor_name(layer, "weight")))
    if num_images > num_units:  # then no feature need lie in the row space
        return NoSpan(f"{num_images} images and {num_units} units of {layer}")
    return layer


def image_span(
    problem: InversionProblem,
    rank: int | None = None,
    *,
    position: float = 0.0,
    directions_per_image: float = DIRECTIONS_PER_IMAGE,
) -> ImageSpan | NoSpan:
    """Find the span that the update of the first fully connected layer tells.

    Args:
        problem: What is to be solved.
        rank: Directions; ``None`` takes N for one local epoch, else ``directions_per_image`` times N.
        position: Where features are taken, as a share of the way through the local steps: 0 is w_t, and 0.5 their
            mean, were they on a straight line. Where defenses are known, it is w_t: what noise, signs or pruning make
            of the way is none.
        directions_per_image: Of several local epochs.
    """
    layer = spanned_layer(problem.model, problem.num_images)
    if isinstance(layer, NoSpan):
        return layer
    weight = tensor_name(layer, "weight")
    if problem.is_muted(weight):
        return NoSpan(f"a known defense spoils {weight}")
    update, num_images = problem.observed[weight], problem.num_images
    extra = 1.0 if problem.recipe.epochs == 1 else directions_per_image
    directions = rank or math.ceil(extra * num_images)
    if noise := problem.noise_variance(weight):
        directions = min(directions, visible_rank(update, _CLEARLY * noise**0.5))
        if directions < num_images:  # the features of all images would be pulled into too few
            return NoSpan(f"known noise leaves {directions} directions of {weight} for {num_images} images")
    # The U steps are taken at w_t, ..., w_t + (U - 1) / U delta.
    passed = position * problem.recipe.learning_rate * (problem.num_steps - 1)
    weights = problem.parameters
    if passed and problem.adaptation is None:
        weights = {name: tensor - passed * problem.observed[name] for name, tensor in weights.items()}
    return ImageSpan(problem=problem, layer=layer, basis=update_span(update, directions), weights=weights)
