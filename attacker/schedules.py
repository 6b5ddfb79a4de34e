"""How a number of the optimisation changes with the step: learning rates and the weight of the matching term.

A schedule is a small frozen value that is called with the step, counted from 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in each step."""

    value: float

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousDecay:
    """``start * factor ** (step / period)``, without jumps."""

    start: float
    factor: float
    period: int

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.start * self.factor ** (step / self.period)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricRamp:
    """From ``start`` towards ``end`` by one constant factor a step, the first step included; then ``end``.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, released code.
    """

    start: float
    end: float
    num_steps: int

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        progress = min(1.0, (step + 1) / max(1, self.num_steps))
        return self.start * (self.end / self.start) ** progress


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay:
    """Divided by ten at 3/8, 5/8 and 7/8 of the way.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, released code.
    """

    start: float
    num_steps: int

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.start * 0.1 ** sum(8 * step >= eighths * self.num_steps for eighths in (3, 5, 7))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay:
    """From ``start`` to 0 along half a cosine.

    References:
        Loshchilov and Hutter, SGDR, ICLR 2017, Eq. 5.
    """

    start: float
    num_steps: int

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return 0.5 * self.start * (1.0 + math.cos(math.pi * step / self.num_steps))
