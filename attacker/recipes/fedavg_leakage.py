"""Data Leakage in Federated Averaging: unroll the epochs, one set of images for each, tied by their statistics.

    minimise over z   f(t) U^2 / B  D(simulated, observed) + smoothness + box + epoch order,   then match and average

D compares *mean* gradients; the released code compares their sums over the U local steps and divides by the number B of
dummy batches (U with a set for each epoch, B_c with shared images), which is the factor U^2 / B. Cosine distance
knows no scale and has no such factor.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.company import evaluate
from attacker.distances import DISTANCES
from attacker.gradient_matching import Objective, Optimum, Search, minimise
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.joint_terms import JointTerm
from attacker.local_steps import Simulation
from attacker.matching import match_and_average
from attacker.observation import Observation
from attacker.priors.epoch_order import Aggregate, Norm, epoch_order, random_filters
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from attacker.recipes.leakage_constants import (
    LeakageConstants,
    MatchingDistance,
    Preset,
    leakage_constants,
    resolve_preset,
)
from attacker.recipes.matching_scale import MATCHING_SCALES, MatchingScale
from attacker.recipes.matching_term import matching_term
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.schedules import ContinuousDecay, GeometricRamp
from attacker.wrappers import BestOf
from fl_sim.records import DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgLeakage:
    """Gradient matching through the simulated local epochs, with an epoch order-invariant prior.

    With the defaults this is the released code, not the paper's text: layer-weighted squared L2 instead of cosine,
    and 400 steps instead of 200. A hyper-parameter that is ``None`` is that of the preset.

    Attributes:
        preset: Which scripts' constants: ``by_channels`` takes FEMNIST's for one channel, else CIFAR100's.
        loss: Distance between mean gradients.
        matching_scale: What squared L2 is multiplied by, see `attacker.recipes.matching_scale`: ``released`` is the
            authors' factor, ``relative`` carries their weights over to other models, rates and numbers of images.
        variables: A set of images for each epoch, matched and averaged at the end, or one ``shared`` set.
        simulation: How the local steps are followed, see `attacker.local_update`; ``fedsgd`` needs shared variables.
        steps: Adam steps.
        keep: The last iterate or the best one by matching loss.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs, of which the lowest matching loss is kept.
        learning_rate: Of Adam at step 0, in normalised units.
        learning_rate_decay: Factor per ``decay_period`` steps, applied continuously, in (0, 1].
        decay_period: In steps.
        matching_start: Factor of the matching term at the start.
        matching_end: Its value from half-way on; geometric in between.
        quadratic_variation: Weight of the smoothness prior.
        pixel_box: Weight of the prior that pixels lie in [0, 1].
        epoch_order: Weight of the epoch order-invariant prior; without effect on shared variables.
        epoch_aggregate: Its g.
        epoch_norm: Its norm.
        epoch_filters: Whether g looks at 96 random convolution features instead of pixels.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 10/2022, Algorithm 2, and its released code.
    """

    preset: Preset = "by_channels"
    loss: MatchingDistance = "layer_weighted_l2"
    matching_scale: MatchingScale = "released"
    variables: Literal["per_epoch", "shared"] = "per_epoch"
    simulation: Simulation = "full"
    steps: int = 400
    keep: Literal["last", "best"] = "last"
    label_recovery: str = "automatic"
    restarts: int = 1
    learning_rate: float | None = None
    learning_rate_decay: float | None = None
    decay_period: int | None = None
    matching_start: float | None = None
    matching_end: float | None = None
    quadratic_variation: float | None = None
    pixel_box: float | None = None
    epoch_order: float | None = None
    epoch_aggregate: Aggregate | None = None
    epoch_norm: Norm | None = None
    epoch_filters: bool | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(steps=self.steps, restarts=self.restarts)
        check_at_least_one(**({} if self.decay_period is None else {"decay_period": self.decay_period}))
        check_positive(
            learning_rate=self.learning_rate,
            learning_rate_decay=self.learning_rate_decay,
            matching_start=self.matching_start,
            matching_end=self.matching_end,
        )
        check_not_negative(
            quadratic_variation=self.quadratic_variation, pixel_box=self.pixel_box, epoch_order=self.epoch_order
        )
        if self.learning_rate_decay is not None and self.learning_rate_decay > 1:
            raise ValueError(f"learning_rate_decay must be in (0, 1], got {self.learning_rate_decay}")
        if self.simulation == "fedsgd" and self.variables != "shared":
            raise ValueError(f"simulation 'fedsgd' needs variables = 'shared', got {self.variables!r}")

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`."""
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem, optimum = self.search(observation, generator=generator, on_step=on_step)
        pixels = average_over_epochs(problem, optimum.variables)
        return reconstruction(problem, pixels, optimum, self._matching(problem), started=started)

    def search(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> tuple[InversionProblem, Optimum]:
        """Run the optimisation alone: normalised images (V, N, C, H, W), V = E or 1, neither averaged nor clipped."""
        problem = inversion_problem(observation, self.label_recovery, generator)
        constants = self.constants(observation.dataset)
        num_sets = problem.recipe.epochs if self.variables == "per_epoch" else 1
        matching = self._matching(problem)
        objective = Objective(
            matching=lambda variables: matching(problem.to_pixels(variables)),
            priors=((1.0, partial(evaluate, _priors(constants, problem, generator))),),
        )
        optimum = minimise(
            objective,
            problem.noise(generator, num_sets=num_sets),
            Search(
                steps=self.steps,
                learning_rate=ContinuousDecay(
                    start=constants.learning_rate,
                    factor=constants.learning_rate_decay,
                    period=constants.decay_period,
                ),
                matching_factor=GeometricRamp(
                    start=problem.trust * constants.matching_start,
                    end=problem.trust * constants.matching_end,
                    num_steps=self.steps // 2,
                ),
                keep=self.keep,
            ),
            on_step=on_step,
            to_pixels=lambda variables: average_over_epochs(problem, variables),
        )
        return problem, optimum

    def constants(self, dataset: DatasetSpec) -> LeakageConstants:
        """Return the preset's constants with those of this attack's fields that are set in their place."""
        preset = leakage_constants(self.preset, self.loss, dataset)
        own = {field.name: getattr(self, field.name) for field in fields(LeakageConstants)}
        return replace(preset, **{name: value for name, value in own.items() if value is not None})

    def _matching(self, problem: InversionProblem) -> Callable[[Tensor], Tensor]:
        """Return the distance, as the released code scales it, of pixels (V, N, C, H, W) or (N, C, H, W)."""
        distance = problem.directional_distance if self.loss == "cosine" else DISTANCES[self.loss]
        num_sets = problem.recipe.epochs if self.variables == "per_epoch" else 1
        scale = 1.0
        if self.loss != "cosine":
            preset = resolve_preset(self.preset, problem.image_shape)
            scale = MATCHING_SCALES[self.matching_scale](problem, num_sets=num_sets, preset=preset)

        term = matching_term(problem, distance, scale=scale)

        def matching(pixels: Tensor) -> Tensor:
            images = pixels[0] if pixels.dim() == 5 and pixels.shape[0] == 1 else pixels
            return problem.matching(images, self.simulation, term)

        return matching


def average_over_epochs(problem: InversionProblem, variables: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), not clipped, from normalised images (V, N, C, H, W)."""
    own = problem.to_pixels(variables).split(problem.members, dim=1)
    return torch.cat([match_and_average(images) for images in own])


def _priors(constants: LeakageConstants, problem: InversionProblem, generator: torch.Generator) -> JointTerm:
    own = {"mean": problem.mean, "std": problem.std}
    if constants.epoch_filters:
        own["filters"] = random_filters(problem.image_shape[0], generator).to(problem.mean)
    return JointTerm(function=_Priors(constants=constants, members=problem.members), constants=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priors:
    """The weighted priors of normalised images (V, N, C, H, W), as one function that attacks side by side share."""

    constants: LeakageConstants
    members: tuple[int, ...]

    def __call__(self, variables: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        constants = self.constants
        terms = [
            constants.quadratic_variation * quadratic_variation(variables),
            constants.pixel_box * pixel_box(own["mean"] + own["std"] * variables),
        ]
        if len(variables) > 1 and constants.epoch_order:
            terms.append(constants.epoch_order * self._epoch_order(variables, own.get("filters")))
        return torch.stack(terms).sum()

    def _epoch_order(self, variables: Tensor, filters: Tensor | None) -> Tensor:
        """Return the mean of the order prior over the clients: each visits its own images in every epoch."""
        of_each = [
            epoch_order(
                images, aggregate=self.constants.epoch_aggregate, norm=self.constants.epoch_norm, filters=filters
            )
            for images in variables.split(self.members, dim=1)
        ]
        return torch.stack(of_each).mean()
