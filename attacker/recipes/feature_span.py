"""Our strongest attack: one set of images, features held in the span of the update, the unknown order discounted.

    minimise over z   f D(observed - c(z)) / D(observed) + w(t) (span(z) + v volume(z)) + smoothness + box

c follows the local training with a few full-batch gradients. First D is the layer-weighted squared L2; then, in rounds,
the mean and the scatter of the update over random orders are sampled at the images so far (`attacker.order_noise`), and
the weight of the span grows by far.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attacker.attack import OnStep, Outcome, Progress, Reconstruction, ignore_progress
from attacker.gradient_matching import Optimum, Search, minimise
from attacker.held_matching import HeldMatching
from attacker.image_span import ImageSpan, NoSpan, image_span
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.order_noise import OrderNoise, layer_weighted_vector, no_order_noise, sample_order_noise
from attacker.priors.feature_volume import feature_volume, typical_share
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.schedules import Constant, CosineDecay, GeometricRamp, Schedule
from attacker.wrappers import BestOf


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpan:
    """Gradient matching with the features confined to the row space of the first fully connected layer's update.

    For models with a fully connected layer behind the flattened features, and no more images than that layer has units;
    elsewhere it goes on without the span, and a remark says so. The distance between updates hardly tells two images
    from two mixtures of them; the span does, the better the heavier it weighs, but it must not lead before every image
    has found its place.

    Attributes:
        steps: Adam steps of the coarse part.
        coarse_hold: Adam steps for which each gradient of the matching term serves there.
        rounds: Rounds of the fine part; 0 leaves it out.
        round_steps: Gradients of the matching term in each round.
        hold: Adam steps for which each of them serves.
        learning_rate: Of Adam at the start, in normalised units; falls to its half in the coarse part, and from there
            to 0 in each round.
        matching: Factor f of the matching term, which is 1 for a simulated update of zero.
        feature_span: Weight of the span prior at the start.
        feature_span_fine: Its weight at the end of the coarse part, and at the start of each round.
        feature_span_end: Its weight at the end of each round; geometric in between.
        feature_volume: Weight, relative to that of the span, of the prior that no image is a copy or a mixture of
            others.
        least_volume: What the features of an image must have of their own, as a share of what is typical among the
            images so far.
        rank: Directions of the span; ``None`` takes N for one local epoch, else 1.6 N. Those that known noise drowns
            are left out; where less than N remain, or a known defense spoils the layer, so is the prior.
        orders: K, random orders sampled in each round; 0 leaves the sampling out.
        order_floor: Variance of a direction that no order moves, as a share of the update's energy.
        quadratic_variation: Weight of the smoothness prior.
        pixel_box: Weight of the prior that pixels lie in [0, 1].
        start_noise: Standard deviation of the start around the background, in normalised units.
        background: Grey level in [0, 1] that pictures are known to have in most places, where that is public (1 for a
            white page); ``None`` starts at the data set's mean.
        simulation: How the local steps are followed, see `attacker.local_steps`.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs, of which the lowest matching loss is kept.

    References:
        This project; on top of Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022 ("Shared",
        "FedSGD-Epoch"), and of Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1.
    """

    steps: int = 300
    coarse_hold: int = 2
    rounds: int = 3
    round_steps: int = 25
    hold: int = 4
    learning_rate: float = 0.4
    matching: float = 250.0
    feature_span: float = 300.0
    feature_span_fine: float = 3000.0
    feature_span_end: float = 1e5
    feature_volume: float = 0.1
    least_volume: float = 0.25
    rank: int | None = None
    orders: int = 16
    order_floor: float = 1e-4
    quadratic_variation: float = 3e-5
    pixel_box: float = 2.0
    start_noise: float = 0.3
    background: float | None = None
    simulation: Simulation = 5
    label_recovery: str = "automatic"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(
            steps=self.steps,
            coarse_hold=self.coarse_hold,
            round_steps=self.round_steps,
            hold=self.hold,
            restarts=self.restarts,
        )
        check_at_least_one(**({} if self.rank is None else {"rank": self.rank}))
        check_positive(
            learning_rate=self.learning_rate,
            matching=self.matching,
            feature_span=self.feature_span,
            feature_span_fine=self.feature_span_fine,
            feature_span_end=self.feature_span_end,
            least_volume=self.least_volume,
            order_floor=self.order_floor,
        )
        check_not_negative(
            rounds=self.rounds,
            orders=self.orders,
            feature_volume=self.feature_volume,
            quadratic_variation=self.quadratic_variation,
            pixel_box=self.pixel_box,
            start_noise=self.start_noise,
        )
        if self.background is not None and not 0 <= self.background <= 1:
            raise ValueError(f"background must be in [0, 1], got {self.background}")

    @property
    def num_steps(self) -> int:
        """Adam steps of a run, in all."""
        return self.steps + self.rounds * self.round_steps * self.hold

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`."""
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)
        span = image_span(problem, self.rank)
        noise = no_order_noise(layer_weighted_vector(problem.observed))
        coarse, *rounds = self._parts()
        optimum = self._search(coarse, problem, span, noise, self._start(problem, generator), on_step)
        losses = [optimum.losses]
        for part in rounds:
            if optimum.outcome is not Outcome.FINISHED:
                break
            if self.orders:
                noise = sample_order_noise(
                    problem,
                    problem.to_pixels(optimum.variables).clamp(0.0, 1.0),
                    self.simulation,
                    num_orders=self.orders,
                    floor=self.order_floor,
                    generator=generator,
                )
            optimum = self._search(part, problem, span, noise, optimum.variables, on_step)
            losses.append(optimum.losses)
        found = reconstruction(
            problem,
            problem.to_pixels(optimum.variables),
            replace(optimum, losses=torch.cat(losses)),
            partial(_matching, problem, noise, self.simulation),
            started=started,
        )
        if isinstance(span, ImageSpan):
            return found
        return replace(found, remarks=(*found.remarks, f"without the span: {span.reason}"))

    def _parts(self) -> tuple["_Part", ...]:
        length = self.round_steps * self.hold
        coarse = _Part(
            first=0,
            steps=self.steps,
            hold=self.coarse_hold,
            rate=CosineDecay(start=self.learning_rate, num_steps=2 * self.steps),
            span=GeometricRamp(start=self.feature_span, end=self.feature_span_fine, num_steps=self.steps),
        )
        fine = _Part(
            first=self.steps,
            steps=length,
            hold=self.hold,
            rate=CosineDecay(start=0.5 * self.learning_rate, num_steps=length),
            span=GeometricRamp(start=self.feature_span_fine, end=self.feature_span_end, num_steps=length),
        )
        return (coarse, *(replace(fine, first=self.steps + number * length) for number in range(self.rounds)))

    def _search(
        self,
        part: "_Part",
        problem: InversionProblem,
        span: ImageSpan | NoSpan,
        noise: OrderNoise,
        start: Tensor,
        on_step: OnStep,
    ) -> Optimum:
        def prior(variables: Tensor, step: int) -> Tensor:
            pixels = problem.to_pixels(variables)
            smooth = self.quadratic_variation * quadratic_variation(variables) + self.pixel_box * pixel_box(pixels)
            if isinstance(span, NoSpan):
                return smooth
            features = span.features(pixels)
            volume = feature_volume(features, floor=self.least_volume * typical_share(features))
            return smooth + part.span(step) * (span.prior(features) + self.feature_volume * volume)

        def report(progress: Progress) -> None:
            on_step(replace(progress, step=part.first + progress.step, num_steps=self.num_steps))

        return minimise(
            HeldMatching(
                lambda variables: _matching(problem, noise, self.simulation, problem.to_pixels(variables)),
                prior,
                hold=part.hold,
            ),
            start,
            Search(
                steps=part.steps,
                learning_rate=part.rate,
                matching_factor=Constant(problem.trust * self.matching),
            ),
            on_step=report,
            to_pixels=problem.to_pixels,
        )

    def _start(self, problem: InversionProblem, generator: torch.Generator) -> Tensor:
        noise = self.start_noise * problem.noise(generator)
        return noise if self.background is None else noise + problem.to_normalised(self.background)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some of the Adam steps.

    Attributes:
        first: Steps before it.
        steps: Its own.
        hold: For how many of them a gradient of the matching term serves.
        rate: Learning rate, by own step.
        span: Weight of the span prior, by own step.
    """

    first: int
    steps: int
    hold: int
    rate: Schedule
    span: Schedule


def _matching(problem: InversionProblem, noise: OrderNoise, simulation: Simulation, pixels: Tensor) -> Tensor:
    simulated = layer_weighted_vector(problem.simulate(pixels, simulation))
    observed = layer_weighted_vector(problem.observed)
    return noise.squared_distance(observed - simulated) / observed.square().sum()
