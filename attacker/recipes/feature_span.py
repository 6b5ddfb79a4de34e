"""Our strongest attack: one set of images, one full-batch step an epoch, features held in the span of the update.

minimise over z   f U^2 / B_c  sum_l e^-d(l) ||S_l - O_l||^2 + span(z) + smoothness + box
"""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.distances import layer_weighted_l2
from attacker.gradient_matching import Objective, Search, Term, minimise
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.layer_inputs import first_linear, inputs_of_layer, tensor_name
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.priors.feature_span import feature_span, update_span, visible_rank
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.schedules import Constant, CosineDecay
from attacker.wrappers import BestOf

# Local training turns the features, so that more directions than images carry them; measured with N = 50, E = 10.
_DIRECTIONS_PER_IMAGE = 1.2

# A direction is of use once it stands out of the noise by this factor; nearer to it, it is mostly noise itself. With
# N = 4 and the weakest direction at 10 times the noise's edge the prior gained 9 dB, at 3 times it lost 2 dB.
_CLEARLY = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpan:
    """Gradient matching with the features confined to the row space of the first fully connected layer's update.

    For models with a fully connected layer behind the flattened features, and fewer images than that layer has units.
    Shared images make it E times smaller than per-epoch copies, and the span makes them the better choice.

    Attributes:
        steps: Adam steps; the rate falls to 0 along half a cosine.
        learning_rate: Of Adam at step 0, in normalised units.
        matching: Factor of the matching term, which is scaled as in `FedAvgLeakage`.
        feature_span: Weight of the span prior.
        rank: Directions of the span; ``None`` takes N for one local epoch, else 1.2 N. Those that known noise drowns
            are left out; where less than N remain, or a known defense spoils the layer, so is the prior.
        quadratic_variation: Weight of the smoothness prior.
        pixel_box: Weight of the prior that pixels lie in [0, 1].
        start_noise: Standard deviation of the start around the background, in normalised units.
        background: Grey level in [0, 1] that pictures are known to have in most places, where that is public (1 for a
            white page); ``None`` starts at the data set's mean.
        simulation: How the local steps are followed, see `attacker.local_update`.
        keep: The last iterate or the best one by matching loss.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs, of which the lowest matching loss is kept.

    References:
        This project; on top of Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022 ("Shared",
        "FedSGD-Epoch"), and of Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1.
    """

    steps: int = 500
    learning_rate: float = 0.4
    matching: float = 2.0
    feature_span: float = 300.0
    rank: int | None = None
    quadratic_variation: float = 3e-5
    pixel_box: float = 2.0
    start_noise: float = 0.3
    background: float | None = None
    simulation: Simulation = "fedsgd_epoch"
    keep: Literal["last", "best"] = "last"
    label_recovery: str = "automatic"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(steps=self.steps, restarts=self.restarts)
        check_at_least_one(**({} if self.rank is None else {"rank": self.rank}))
        check_positive(learning_rate=self.learning_rate, matching=self.matching)
        check_not_negative(
            feature_span=self.feature_span,
            quadratic_variation=self.quadratic_variation,
            pixel_box=self.pixel_box,
            start_noise=self.start_noise,
        )
        if self.background is not None and not 0 <= self.background <= 1:
            raise ValueError(f"background must be in [0, 1], got {self.background}")

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`.

        Raises:
            DoesNotApplyError: If the model has no fully connected layer.
        """
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)
        scale = problem.num_steps**2 / problem.num_batches
        span = self._span(problem)

        def matching(pixels: Tensor) -> Tensor:
            return scale * layer_weighted_l2(problem.simulate(pixels, self.simulation), problem.observed)

        optimum = minimise(
            Objective(
                matching=lambda variables: matching(problem.to_pixels(variables)),
                priors=(
                    *(() if span is None else ((self.feature_span, span),)),
                    (self.quadratic_variation, quadratic_variation),
                    (self.pixel_box, lambda variables: pixel_box(problem.to_pixels(variables))),
                ),
            ),
            self._start(problem, generator),
            Search(
                steps=self.steps,
                learning_rate=CosineDecay(start=self.learning_rate, num_steps=self.steps),
                matching_factor=Constant(problem.trust * self.matching),
                keep=self.keep,
            ),
            on_step=on_step,
        )
        return reconstruction(problem, problem.to_pixels(optimum.variables), optimum, matching, started=started)

    def _start(self, problem: InversionProblem, generator: torch.Generator) -> Tensor:
        noise = self.start_noise * problem.noise(generator)
        return noise if self.background is None else noise + problem.to_normalised(self.background)

    def _span(self, problem: InversionProblem) -> Term | None:
        """Return the span prior as a function of normalised images; ``None`` where known defenses leave no span.

        With fewer visible directions than images the prior would pull the features of all of them into too few.
        """
        layer = first_linear(problem.model)
        weight = tensor_name(layer, "weight")
        extra = 1.0 if problem.recipe.epochs == 1 else _DIRECTIONS_PER_IMAGE
        rank = self.rank or math.ceil(extra * problem.num_images)
        noise = problem.noise_variance(weight)
        if noise:
            rank = min(rank, visible_rank(problem.observed[weight], _CLEARLY * noise**0.5))
        if problem.is_muted(weight) or (noise and rank < problem.num_images):
            return None
        basis = update_span(problem.observed[weight], rank)
        return partial(_span_of_images, problem, layer, basis)


def _span_of_images(problem: InversionProblem, layer: str, basis: Tensor, variables: Tensor) -> Tensor:
    pixels = problem.to_pixels(variables)
    features, _ = inputs_of_layer(problem.model, layer, problem.parameters, problem.buffers, pixels)
    return feature_span(features, basis=basis)
