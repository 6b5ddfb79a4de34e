"""One recorded update beside its replay, and what a hypothesis finds about it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from attacker.diagnosis.replay import DeclaredTraining, Replay, Variation, replay
from attacker.diagnosis.residual import energy, inner, relative_residual
from fl_sim.records import Algorithm

NEAR_ZERO = 1e-6
"""Share of the update's energy below which nothing is left to explain: a thousandth of its length."""
_ROUNDING_MARGIN = 10.0
_DRAW_MARGIN = 10.0
"""How many times the expected energy between two draws of an order or a mask a residual may be.

Orders differ in few directions, and the expectation is that of six draws: an F(1, 5) is above 10 in one of 40 cases.
"""
_SINGLE_PRECISION = 2.0**-24
_ROUNDINGS = 4.0
"""Single roundings, at most, on the way of an entry through one operation of the client and back."""
_FIT_STEPS = 8
_EXACTLY = 1e-7
"""Share of what counts as nothing at which a fit need not go on."""


class Evidence(IntEnum):
    """How well a finding accounts for the update."""

    EXACT = 0
    """Replayed so, nothing is left."""
    STATISTICAL = 1
    """What is left is as large, and looks, as the randomness that was found would make it."""
    PARTIAL = 2
    """Something is left that it does not explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one hypothesis makes of the update.

    Attributes:
        cause: Name of the hypothesis.
        detail: What differs, with numbers, as a sentence without its subject.
        residual: Share of the update's energy that is left under the hypothesis.
        evidence: How well it accounts for the update.
        num_fitted: Numbers that were fitted; of two hypotheses that explain all, the one with fewer is taken.
    """

    cause: str
    detail: str
    residual: float
    evidence: Evidence
    num_fitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What hypotheses work on.

    Attributes:
        training: The declared training on the true images.
        algorithm: What the client sends.
        sent: What it sent, in the model's names, as it was received.
        delta: The same as w_c - w_t in float64, by the model's names; those that were received.
        plain: The replay of the declared training.
        residual: Of ``plain``.
        near_zero: Share of the energy below which nothing is left to explain.
    """

    training: DeclaredTraining
    algorithm: Algorithm
    sent: Mapping[str, Tensor]
    delta: Mapping[str, Tensor]
    plain: Replay
    residual: float
    near_zero: float

    @property
    def matches(self) -> bool:
        """Whether the declared training explains the update."""
        return self.evidence(self.residual) is Evidence.EXACT

    @property
    def unit(self) -> float:
        """What ``delta`` is divided by to be in the units of what the client sends; signs differ for a gradient."""
        return self.training.recipe.learning_rate if self.algorithm is Algorithm.FEDSGD else 1.0

    def roundings(self, name: str) -> Tensor:
        """Return what single precision may change in each entry of a tensor of ``delta``."""
        moved = self.delta[name].abs()
        largest = moved if self.algorithm is Algorithm.FEDSGD else moved + self.training.weights[name].abs()
        return _ROUNDINGS * _SINGLE_PRECISION * largest

    def evidence(self, residual: float, variance: float = 0.0) -> Evidence:
        """Say how well a replay accounts for the update.

        Args:
            residual: Of the replay.
            variance: Energy between its draws, see `Replay`.
        """
        if residual <= self.near_zero:
            return Evidence.EXACT
        expected = variance / (energy(self.delta) or 1.0)
        # More than all of the update is left by no update at all.
        return Evidence.STATISTICAL if residual <= min(_DRAW_MARGIN * expected, 1.0) else Evidence.PARTIAL

    def residual_of(self, replayed: Replay) -> float:
        """Return the share of the update's energy that a replay leaves."""
        return relative_residual(replayed.delta, self.delta)

    def found(self, cause: str, detail: str, replayed: Replay, *, num_fitted: int = 0) -> Finding:
        """Return the finding of a replay."""
        residual = self.residual_of(replayed)
        evidence = self.evidence(residual, replayed.variance)
        return Finding(cause=cause, detail=detail, residual=residual, evidence=evidence, num_fitted=num_fitted)

    def tried(self, cause: str, detail: str, variation: Variation) -> Finding:
        """Replay a variation without a fitted number, and return what is left."""
        return self.found(cause, detail, replay(self.training, variation))

    def fit(
        self, variation_of: Callable[[float], Variation], start: tuple[float, float], bounds: tuple[float, float]
    ) -> tuple[float, Replay]:
        """Fit one number of a variation: Gauss-Newton with a secant in place of the derivative.

            x <- x + <O - S(x), D> / <D, D>,       D = (S(x) - S(x')) / (x - x')

        Args:
            variation_of: From the number to the variation.
            start: Two different first values.
            bounds: Lowest and highest value.

        Returns:
            The best value met, and its replay.
        """
        (before, number), (lowest, highest) = start, bounds
        old, new = (replay(self.training, variation_of(value)) for value in (before, number))
        best = min(((before, old), (number, new)), key=lambda pair: self.residual_of(pair[1]))
        for _ in range(_FIT_STEPS):
            slope = {name: (new.delta[name] - old.delta[name]) / (number - before) for name in self.delta}
            steepness = energy(slope)
            if self.residual_of(best[1]) <= _EXACTLY * self.near_zero:
                break
            if steepness == 0.0 or not math.isfinite(steepness):
                break
            left = {name: tensor - new.delta[name] for name, tensor in self.delta.items()}
            following = min(max(number + inner(left, slope) / steepness, lowest), highest)
            if abs(following - number) <= 1e-12 * max(abs(number), 1e-12):
                break
            before, old, number = number, new, following
            new = replay(self.training, variation_of(number))
            if self.residual_of(new) < self.residual_of(best[1]):
                best = (number, new)
        return best


def near_zero(training: DeclaredTraining, delta: Mapping[str, Tensor], algorithm: Algorithm) -> float:
    """Return the share of an update's energy that counts as nothing: `NEAR_ZERO`, or the client's rounding if larger.

    Weights are rounded to single precision in every local step, which is much of an update that is small beside them.
    """
    if algorithm is Algorithm.FEDSGD or not energy(delta):
        return NEAR_ZERO
    rounding = training.num_steps * energy({name: training.weights[name] * _SINGLE_PRECISION for name in delta})
    return max(NEAR_ZERO, _ROUNDING_MARGIN * rounding / energy(delta))
