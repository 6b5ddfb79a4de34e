"""Our strongest attack: one set of images, features held in the span of the update, the unknown order discounted.

    minimise over z   f D(observed - c(z)) / D(observed) + w(t) (span(z) + v volume(z)) + smoothness + box

c follows the local training with a few full-batch gradients. First D is the layer-weighted squared L2; then, in rounds,
the mean and the scatter of the update over random orders are sampled at the images so far (`attacker.order_noise`), and
the weight of the span grows by far. Between rounds, images that the update leaves in doubt (`attacker.image_doubt`) are
searched anew, the others held.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import OnStep, Outcome, Progress, Reconstruction, ignore_progress
from attacker.company import evaluate
from attacker.contrast import full_contrast
from attacker.faithful_simulation import FaithfulSimulation
from attacker.fidelity import Fidelity, FidelityLadder
from attacker.gradient_matching import Optimum, Search, minimise
from attacker.held_matching import HeldMatching
from attacker.image_doubt import doubts, less_doubtful
from attacker.image_span import ImageSpan, NoSpan, image_span
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.order_noise import OrderNoise, layer_weighted_vector, no_order_noise, sample_order_noise
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.recipes.span_constants import MOST_REPAIR_STEPS, SpanConstants, span_constants
from attacker.recipes.span_terms import Weights, matching_term, prior_term
from attacker.schedules import CosineDecay, GeometricRamp, Schedule
from attacker.wrappers import BestOf

# The weight of the matching term is the inverse of the noise in it, up to this factor.
_FACTOR_TIMES_NOISE = 5.0

# What is less doubtful than a true image may be is not told apart.
_NO_DOUBT = 0.1


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
        repair_steps: Adam steps, held as in the coarse part, in which images in doubt are searched anew before each
            round but the first; after the round the less doubtful version of each image is kept. 0 leaves it out.
            ``None`` takes 100, and 0 for many local steps, where the update tells too little of doubt.
        doubt: What an image has of its own and not in the update, as a share of all that it has of its own, above which
            it is searched anew.
        learning_rate: Of Adam at the start, in normalised units; falls to its half in the coarse part and in repairs,
            and from there to 0 in each round. This and all fields below whose default is ``None`` follow the channels
            of the images, the number of local steps, and the network's curvature, see `span_constants`.
        matching: Factor f of the matching term, which is 1 for a simulated update of zero. About the inverse of what
            a simulation with the true images misses, as an unknown order makes it.
        feature_span: Weight of the span prior at the start.
        feature_span_fine: Its weight at the end of the coarse part and of repairs, and at the start of each round.
        feature_span_end: Its weight at the end of each round, geometric in between.
        feature_volume: Weight, relative to that of the span, of the prior that no image is a copy or a mixture of
            others.
        least_volume: What the features of an image must have of their own, as a share of what is typical among the
            images so far.
        rank: Directions of the span; ``None`` takes N for one local epoch, else 1.6 N, and 1.9 N for many local steps
            and for curvature that bears no wide ones.
            Those that known noise drowns are left out; where less than N remain, or a known defense spoils the layer,
            so is the prior.
        position: Where features are taken, as a share of the way from w_t to w_c, see `attacker.image_span`.
        orders: K, random orders sampled in each round; 0 leaves the sampling out.
        order_floor: Variance of a direction that no order moves, as a share of the update's energy.
        quadratic_variation: Weight of the smoothness prior.
        pixel_box: Weight of the prior that pixels lie in [0, 1].
        full_contrast: Share of an image's values that may lie beyond [0, 1] when its contrast is raised in the end, see
            `attacker.contrast`; 0 leaves it as it was found.
        start_noise: Standard deviation of the start around the background, in normalised units.
        background: Grey level in [0, 1] that pictures are known to have in most places, where that is public (1 for a
            white page); ``None`` starts at the data set's mean.
        simulation: How the local steps are followed, see `attacker.local_steps`. Of several, from cheap to faithful,
            the next is taken when the matching loss of the coarse part stops falling. ``"as_needed"`` takes the
            cheapest that misses little at the images so far, and lets the matching term weigh less where the unknown
            order makes much of the update, see `attacker.faithful_simulation`. ``None`` takes 5, five full-batch
            gradients, ``merged_10`` for many local steps, and ``"as_needed"`` where the network's curvature does not
            bear five wide steps.
        patience: Gradients of the matching term within which that loss must fall.
        least_gain: Share by which it must fall.
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
    repair_steps: int | None = None
    doubt: float = 0.5
    learning_rate: float | None = None
    matching: float | None = None
    feature_span: float | None = None
    feature_span_fine: float | None = None
    feature_span_end: float | None = None
    feature_volume: float = 0.1
    least_volume: float = 0.25
    rank: int | None = None
    position: float | None = None
    orders: int = 16
    order_floor: float = 1e-4
    quadratic_variation: float | None = None
    pixel_box: float | None = None
    full_contrast: float | None = None
    start_noise: float = 0.3
    background: float | None = None
    simulation: Simulation | tuple[Simulation, ...] | Literal["as_needed"] | None = None
    patience: int = 20
    least_gain: float = 0.05
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
            patience=self.patience,
        )
        check_at_least_one(**({} if self.rank is None else {"rank": self.rank}))
        check_positive(
            doubt=self.doubt,
            learning_rate=self.learning_rate,
            matching=self.matching,
            feature_span=self.feature_span,
            feature_span_fine=self.feature_span_fine,
            feature_span_end=self.feature_span_end,
            least_gain=self.least_gain,
            least_volume=self.least_volume,
            order_floor=self.order_floor,
        )
        check_not_negative(
            rounds=self.rounds,
            repair_steps=self.repair_steps,
            orders=self.orders,
            feature_volume=self.feature_volume,
            quadratic_variation=self.quadratic_variation,
            pixel_box=self.pixel_box,
            start_noise=self.start_noise,
        )
        if self.simulation == ():
            raise ValueError("simulation must name at least one, got ()")
        if self.full_contrast is not None and not 0 <= self.full_contrast < 1:
            raise ValueError(f"full_contrast must be in [0, 1), got {self.full_contrast}")
        if self.position is not None and not 0 <= self.position <= 1:
            raise ValueError(f"position must be in [0, 1], got {self.position}")
        if self.background is not None and not 0 <= self.background <= 1:
            raise ValueError(f"background must be in [0, 1], got {self.background}")

    @property
    def num_steps(self) -> int:
        """Adam steps of a run, in all; fewer are taken where nothing is in doubt or nothing is repaired."""
        repairs = MOST_REPAIR_STEPS if self.repair_steps is None else self.repair_steps
        return self.steps + self.rounds * self.round_steps * self.hold + max(0, self.rounds - 1) * repairs

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`."""
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)
        constants = span_constants(problem, given=self)
        coarse, rounds = self._parts(constants)
        run = _Run(self, constants, problem, self._span(problem, constants), generator, on_step)
        run.search(coarse)
        for repair, part in rounds:
            run.refine(repair, part)
        found = reconstruction(
            problem,
            _finished(problem, run.images, constants.full_contrast),
            run.optimum(),
            run.matching,
            started=started,
        )
        return replace(found, remarks=(*found.remarks, *run.remarks()))

    def span(self, problem: InversionProblem) -> ImageSpan | NoSpan:
        """Find the span of the features, or why there is none."""
        return self._span(problem, span_constants(problem, given=self))

    def start(self, problem: InversionProblem, generator: torch.Generator) -> Tensor:
        """Draw normalised images (N, C, H, W) to start from."""
        noise = self.start_noise * problem.noise(generator)
        return noise if self.background is None else noise + problem.to_normalised(self.background)

    def _span(self, problem: InversionProblem, constants: SpanConstants) -> ImageSpan | NoSpan:
        return image_span(
            problem,
            self.rank,
            position=constants.position,
            directions_per_image=constants.directions_per_image,
        )

    def _parts(self, constants: SpanConstants) -> tuple["_Part", tuple[tuple["_Part", "_Part"], ...]]:
        """Return the coarse part, and for each round the repair before it and the round itself."""
        length = self.round_steps * self.hold
        coarse = _Part(
            first=0,
            steps=self.steps,
            hold=self.coarse_hold,
            rate=CosineDecay(start=constants.learning_rate, num_steps=2 * self.steps),
            span=GeometricRamp(start=constants.feature_span, end=constants.feature_span_fine, num_steps=self.steps),
            may_climb=True,
        )
        fine = _Part(
            first=self.steps,
            steps=length,
            hold=self.hold,
            rate=CosineDecay(start=0.5 * constants.learning_rate, num_steps=length),
            span=GeometricRamp(start=constants.feature_span_fine, end=constants.feature_span_end, num_steps=length),
        )
        rounds: list[tuple[_Part, _Part]] = []
        for number in range(self.rounds):
            first = self.steps + number * (length + constants.repair_steps)
            steps = constants.repair_steps if number else 0
            repair = replace(
                coarse,
                first=first - steps,
                steps=steps,
                rate=CosineDecay(start=constants.learning_rate, num_steps=2 * steps),
                span=GeometricRamp(start=constants.feature_span, end=constants.feature_span_fine, num_steps=steps),
                may_climb=False,
            )
            rounds.append((repair, replace(fine, first=first)))
        return coarse, tuple(rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some of the Adam steps.

    Attributes:
        first: Steps before it.
        steps: Its own.
        hold: For how many of them a gradient of the matching term serves.
        rate: Learning rate, by own step.
        span: Weight of the span prior, by own step.
        may_climb: Whether a more faithful simulation may be taken within it.
    """

    first: int
    steps: int
    hold: int
    rate: Schedule
    span: Schedule
    may_climb: bool = False


def _fidelity(
    attack: FeatureSpan, constants: SpanConstants, problem: InversionProblem, generator: torch.Generator
) -> Fidelity:
    named = constants.simulation
    if named == "as_needed":
        return FaithfulSimulation(problem, generator)
    simulations = named if isinstance(named, tuple) else (named,)
    return FidelityLadder(simulations, patience=attack.patience, least_gain=attack.least_gain)


def _finished(problem: InversionProblem, images: Tensor, share: float) -> Tensor:
    """Return the pixels of normalised images, their contrast raised."""
    pixels = problem.to_pixels(images)
    return full_contrast(pixels, problem.mean, share=share) if share else pixels


class _Run:
    """The attack under way on one problem.

    Attributes:
        images: z (N, C, H, W), normalised, so far.
        noise: How residuals are read: the order's part in them, as far as it was sampled.
    """

    def __init__(
        self,
        attack: FeatureSpan,
        constants: SpanConstants,
        problem: InversionProblem,
        span: ImageSpan | NoSpan,
        generator: torch.Generator,
        on_step: OnStep,
    ) -> None:
        self._attack = attack
        self._constants = constants
        self._problem = problem
        self._generator = generator
        self._on_step = on_step
        self._span = span
        self._fidelity = _fidelity(attack, constants, problem, generator)
        self._optima: list[Optimum] = []
        self.images = attack.start(problem, generator)
        self._weights = Weights(
            quadratic_variation=constants.quadratic_variation,
            pixel_box=constants.pixel_box,
            feature_volume=attack.feature_volume,
            least_volume=attack.least_volume,
        )
        self._read_by(no_order_noise(layer_weighted_vector(problem.observed)))

    @property
    def is_over(self) -> bool:
        """Whether a part did not come to its end."""
        return any(optimum.outcome is not Outcome.FINISHED for optimum in self._optima)

    def optimum(self) -> Optimum:
        """Return how the last part ended, with the losses of all."""
        return replace(self._optima[-1], losses=torch.cat([optimum.losses for optimum in self._optima]))

    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the result."""
        energy = layer_weighted_vector(self._problem.observed).square().sum()
        missed = (self.noise.offset.square().sum() / energy).item()
        simulated = f"simulation {self._fidelity.simulation!r} misses {missed:.1%} of the update at the images so far"
        followed = (f"{simulated}; the last round made up for it",) if missed else ()
        if isinstance(self._span, NoSpan):
            return (*followed, f"without the span: {self._span.reason}")
        num_doubtful = int((self._doubts(self._span) > self._attack.doubt).sum())
        doubtful = f"{num_doubtful} of {len(self.images)} images are in doubt"
        return (*followed, doubtful) if num_doubtful else followed

    def matching(self, pixels: Tensor) -> Tensor:
        """Return the matching term of pixels (N, C, H, W), without its factor, shape ()."""
        return self._problem.matching(pixels, self._fidelity.simulation, self._distance)

    def search(self, part: _Part, moving: Tensor | None = None) -> None:
        """Search the images, or those of them that move, (M,), int64."""
        attack, problem, others = self._attack, self._problem, self.images
        priors = prior_term(problem, self._span, self._weights, others, moving)

        def images(variables: Tensor) -> Tensor:
            return variables if moving is None else others.index_copy(0, moving, variables)

        def matching(variables: Tensor) -> Tensor:
            pixels = problem.to_pixels(images(variables))
            if part.may_climb:
                self._fidelity.look(pixels)
            return self.matching(pixels)

        def prior(variables: Tensor, step: int) -> Tensor:
            return evaluate(priors, variables, part.span(step))

        def report(progress: Progress) -> None:
            self._on_step(replace(progress, step=part.first + progress.step, num_steps=attack.num_steps))

        found = minimise(
            HeldMatching(matching, prior, hold=part.hold, on_loss=self._fidelity.tell if part.may_climb else None),
            others if moving is None else others[moving],
            Search(
                steps=part.steps,
                learning_rate=part.rate,
                matching_factor=self._matching_factor,
            ),
            on_step=report,
            to_pixels=lambda variables: problem.to_pixels(images(variables)),
        )
        self._optima.append(found)
        self.images = images(found.variables)

    def _matching_factor(self, step: int) -> float:
        # Constants were chosen where an order makes 0.02 (250) and 0.2 (25) of the update.
        noise = self._fidelity.noise
        most = self._constants.matching
        return self._problem.trust * (min(most, _FACTOR_TIMES_NOISE / noise) if noise else most)

    def refine(self, repair: _Part, part: _Part) -> None:
        """Run a round: images in doubt are searched anew, then all; of each the less doubtful version is kept."""
        if self.is_over:
            return
        before, doubtful = self.images, self._doubtful() if repair.steps else []
        if doubtful:
            moving = torch.tensor(doubtful, device=before.device)
            self._sample_orders()
            self.images = before.index_copy(0, moving, self._attack.start(self._problem, self._generator)[moving])
            self.search(repair, moving)
        if not self.is_over:
            self._sample_orders()
            self.search(part)
        if doubtful and isinstance(self._span, ImageSpan):
            is_older = less_doubtful(
                self._features(self._span, before),
                self._features(self._span, self.images),
                basis=self._span.basis,
                floor=_NO_DOUBT,
            )
            self.images = torch.where(is_older[:, None, None, None], before, self.images)

    def _sample_orders(self) -> None:
        # Only here: what is sampled makes up for one simulation, which is then kept.
        pixels = self._problem.to_pixels(self.images).clamp(0.0, 1.0)
        self._fidelity.judge(pixels)
        if self._attack.orders:
            self._read_by(
                sample_order_noise(
                    self._problem,
                    pixels,
                    self._fidelity.simulation,
                    num_orders=self._attack.orders,
                    floor=self._attack.order_floor,
                    generator=self._generator,
                )
            )

    def _read_by(self, noise: OrderNoise) -> None:
        self.noise = noise
        self._distance = matching_term(self._problem, noise)

    def _doubtful(self) -> list[int]:
        """Return which images to search anew: half of them at most, as the others have to vouch for them."""
        if isinstance(self._span, NoSpan):
            return []
        found = self._doubts(self._span)
        most = found.argsort(descending=True)[: len(found) // 2].tolist()
        return [image for image in most if found[image] > self._attack.doubt]

    def _doubts(self, span: ImageSpan) -> Tensor:
        return doubts(self._features(span, self.images), basis=span.basis)

    def _features(self, span: ImageSpan, images: Tensor) -> Tensor:
        with torch.no_grad():
            return span.features(self._problem.to_pixels(images).clamp(0.0, 1.0))
