"""Where the features of the private images must lie, and what that says of an image: fits, mixture or copy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacker.attack import DoesNotApplyError
from attacker.inversion_problem import InversionProblem
from attacker.layer_inputs import first_linear, inputs_of_layer, tensor_name
from attacker.priors.feature_span import feature_span, shares_outside_span, update_span, visible_rank

# Local training turns the features, so that more directions than images carry them: with N = 50 and E = 10 the true
# images keep 0.0011 of their energy outside 60 directions and 0.0005 outside 80, mixtures of two 0.0070 and 0.0066.
_DIRECTIONS_PER_IMAGE = 1.6

# A direction is of use once it stands out of the noise by this factor; nearer to it, it is mostly noise itself. With
# N = 4 and the weakest direction at 10 times the noise's edge the prior gained 9 dB, at 3 times it lost 2 dB.
_CLEARLY = 4.0

# Cosine similarity of centred features above which two images are taken for one. Copies among reconstructions had 0.99;
# of the true characters of six clients, 50 each, the two most alike had 0.975, those of the next client 0.955.
_ALIKE = 0.98

# Shares outside the span below this are taken for rounding: of one gradient, true images keep 1e-6.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """The row space of the update of a fully connected layer, and what images look like beside it.

    Attributes:
        problem: What is solved.
        layer: Name of the layer.
        basis: (F, R), orthonormal columns.
    """

    problem: InversionProblem
    layer: str
    basis: Tensor

    def prior(self, pixels: Tensor) -> Tensor:
        """Return `attacker.priors.feature_span` of pixels (N, C, H, W), shape ()."""
        return feature_span(self._features(pixels), basis=self.basis)

    def exposed(self, pixels: Tensor, factor: float) -> Tensor:
        """Say which images are likely to be mixtures or copies of others, (N,), bool.

        Args:
            pixels: (N, C, H, W).
            factor: A mixture has so many times the median share outside the span.
        """
        with torch.no_grad():
            features = self._features(pixels)
            shares = shares_outside_span(features, basis=self.basis)
            centred = features - features.mean(dim=0)
            alike = functional.cosine_similarity(centred[:, None], centred[None], dim=2) > _ALIKE
            # Of two that are alike, the one further from the span is the copy.
            is_copy = (alike & (shares[None] < shares[:, None])).any(dim=1)
            return (shares > (factor * shares.median()).clamp_min(_NEGLIGIBLE)) | is_copy

    def _features(self, pixels: Tensor) -> Tensor:
        problem = self.problem
        return inputs_of_layer(problem.model, self.layer, problem.parameters, problem.buffers, pixels)[0]


@dataclass(frozen=True, slots=True)
class NoSpan:
    """The update tells no span, for a reason that is said to people."""

    reason: str


def image_span(problem: InversionProblem, rank: int | None = None) -> ImageSpan | NoSpan:
    """Find the span that the update of the first fully connected layer tells.

    Args:
        problem: What is to be solved.
        rank: Directions; ``None`` takes N for one local epoch, else 1.6 N.
    """
    try:
        layer = first_linear(problem.model)
    except DoesNotApplyError:
        return NoSpan("the model has no torch.nn.Linear layer")
    weight = tensor_name(layer, "weight")
    if problem.is_muted(weight):
        return NoSpan(f"a known defense spoils {weight}")
    update, num_images = problem.observed[weight], problem.num_images
    if num_images > len(update):  # then no feature need lie in the row space
        return NoSpan(f"{num_images} images and {len(update)} units of {layer}")
    extra = 1.0 if problem.recipe.epochs == 1 else _DIRECTIONS_PER_IMAGE
    directions = rank or math.ceil(extra * num_images)
    if noise := problem.noise_variance(weight):
        directions = min(directions, visible_rank(update, _CLEARLY * noise**0.5))
        if directions < num_images:  # the features of all images would be pulled into too few
            return NoSpan(f"known noise leaves {directions} directions of {weight} for {num_images} images")
    return ImageSpan(problem=problem, layer=layer, basis=update_span(update, directions))
