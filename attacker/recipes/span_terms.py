"""What `attacker.recipes.feature_span` minimises, as functions that attacks side by side can share.

matching   D(observed - c(z)) / D(observed), D as sampled orders have residuals read
priors     smoothness + box + w (span(z) + v volume(z))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attacker.image_span import ImageSpan, NoSpan
from attacker.inversion_problem import InversionProblem
from attacker.joint_terms import JointTerm
from attacker.layer_inputs import inputs_of_layer
from attacker.order_noise import OrderNoise, layer_weighted_vector
from attacker.priors.feature_span import feature_span
from attacker.priors.feature_volume import feature_volume, typical_share
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from fl_sim.parameters import Parameters


def matching_term(problem: InversionProblem, noise: OrderNoise) -> JointTerm:
    """Return the share of the observed update that a simulated one leaves unexplained.

    Args:
        problem: Gives the observed one.
        noise: How residuals are read.
    """
    observed = layer_weighted_vector(problem.observed)
    return JointTerm(
        function=_unexplained,
        constants={
            "observed": observed,
            "energy": observed.square().sum(),
            "offset": noise.offset,
            "directions": noise.directions,
            "discounts": noise.discounts,
        },
    )


def _unexplained(simulated: Parameters, own: Mapping[str, Tensor]) -> Tensor:
    noise = OrderNoise(offset=own["offset"], directions=own["directions"], discounts=own["discounts"])
    return noise.squared_distance(own["observed"] - layer_weighted_vector(simulated)) / own["energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of the priors.

    Attributes:
        quadratic_variation: Of the smoothness.
        pixel_box: Of the box.
        feature_volume: Of the volume, relative to the span.
        least_volume: As a share of what is typical.
    """

    quadratic_variation: float
    pixel_box: float
    feature_volume: float
    least_volume: float


def prior_term(
    problem: InversionProblem,
    span: ImageSpan | NoSpan,
    weights: Weights,
    images: Tensor,
    moving: Tensor | None = None,
) -> JointTerm:
    """Return the weighted priors of normalised images; the weight w of the span is a factor, given at each step.

    Args:
        problem: What is solved.
        span: Without one, only smoothness and box are left.
        weights: Of the priors.
        images: (N, C, H, W), all of them.
        moving: (M,), int64: which of them the variables (M, C, H, W) stand for; ``None``: all, in their order.
    """
    own: dict[str, Any] = {"mean": problem.mean, "std": problem.std}
    if isinstance(span, ImageSpan):
        own |= {"weights": span.weights, "buffers": problem.buffers, "basis": span.basis}
        if moving is not None:
            own |= {"images": images, "moving": moving}
    layer = None if isinstance(span, NoSpan) else span.layer
    return JointTerm(function=_Priors(weights=weights, layer=layer, model=problem.model), constants=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priors:
    weights: Weights
    layer: str | None
    # Attacks side by side have one architecture each, as copies that are not equal; weights are among the constants.
    model: nn.Module = field(compare=False)

    def __call__(self, variables: Tensor, own: Mapping[str, Any], span_weight: float) -> Tensor:
        weights = self.weights
        pixels = own["mean"] + own["std"] * variables
        smooth = weights.quadratic_variation * quadratic_variation(variables) + weights.pixel_box * pixel_box(pixels)
        if self.layer is None:
            return smooth
        if "moving" in own:
            held = own["mean"] + own["std"] * own["images"]
            pixels = held.index_copy(0, own["moving"], pixels)
        features, _ = inputs_of_layer(self.model, self.layer, own["weights"], own["buffers"], pixels)
        volume = feature_volume(features, floor=weights.least_volume * typical_share(features))
        return smooth + span_weight * (feature_span(features, basis=own["basis"]) + weights.feature_volume * volume)
