"""The constants of the feature-span attack, by what the server knows: channels, local steps, network.

Those for few local steps were chosen on E = 10, m = 5, N_c = 50 (U = 100), those for many on E = 10, m = 1 (U = 500);
nothing was tried in between, nor many steps with colours (docs/attacks.md).
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from attacker.image_span import DIRECTIONS_PER_IMAGE
from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from attacker.wide_steps import bears


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanConstants:
    """Fields of `FeatureSpan` whose defaults depend on the problem, by their names there.

    Attributes:
        learning_rate: As there, and so are all but the last.
        directions_per_image: R / N, directions of the span where ``rank`` names no number and E > 1.
    """

    learning_rate: float
    matching: float
    feature_span: float
    feature_span_fine: float
    feature_span_end: float
    position: float
    quadratic_variation: float
    pixel_box: float
    full_contrast: float
    repair_steps: int
    simulation: Simulation | tuple[Simulation, ...] | Literal["as_needed"]
    directions_per_image: float


_WIDE = 5

_ONE_CHANNEL = SpanConstants(
    learning_rate=0.4,
    matching=250.0,
    feature_span=300.0,
    feature_span_fine=3e3,
    feature_span_end=1e5,
    position=0.0,
    quadratic_variation=3e-5,
    pixel_box=2.0,
    full_contrast=0.0,
    repair_steps=100,
    simulation=_WIDE,
    directions_per_image=DIRECTIONS_PER_IMAGE,
)
_COLOUR = replace(
    _ONE_CHANNEL,
    learning_rate=0.2,
    feature_span=1e3,
    feature_span_fine=1e4,
    feature_span_end=3e4,
    position=0.5,
    quadratic_variation=1e-2,
    pixel_box=10.0,
    full_contrast=0.005,
)
# At the true images a simulation misses a fifth of the update instead of a fiftieth, as nobody knows the order, and the
# span tells them from mixtures a third as clearly. So both weigh less, and smoothness more. Full batches do not follow.
_ONE_CHANNEL_MANY_STEPS = replace(
    _ONE_CHANNEL,
    learning_rate=0.2,
    matching=25.0,
    feature_span=100.0,
    feature_span_end=1e4,
    position=0.4,
    quadratic_variation=1e-3,
    repair_steps=0,
    simulation="merged_10",
    directions_per_image=1.9,
)

# After rounds of small steps the curvature of a network bears no wide ones: five full-batch gradients miss the update
# many times over. Where it does bear them, these constants gain on some clients and lose on others, and are dearer
# (docs/attacks.md).
_ONE_CHANNEL_STEEP = replace(
    _ONE_CHANNEL,
    learning_rate=0.2,
    position=0.5,
    simulation="as_needed",
    directions_per_image=1.9,
)

MOST_REPAIR_STEPS = _ONE_CHANNEL.repair_steps
"""The largest default, for what is said before the problem is known."""

_MANY_STEPS = 250


def span_constants(problem: InversionProblem, given: object) -> SpanConstants:
    """Return the constants for a problem.

    Args:
        problem: What is to be solved.
        given: Whose fields of these names, where they are not ``None``, take their place.
    """
    standard = _standard(problem)
    own = {field.name: getattr(given, field.name, None) for field in fields(SpanConstants)}
    return replace(standard, **{name: value for name, value in own.items() if value is not None})


def _standard(problem: InversionProblem) -> SpanConstants:
    if problem.image_shape[0] > 1:
        return _COLOUR
    if problem.num_steps >= _MANY_STEPS:
        return _ONE_CHANNEL_MANY_STEPS
    return _ONE_CHANNEL if bears(problem, _WIDE) else _ONE_CHANNEL_STEEP
