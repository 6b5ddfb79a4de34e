"""Clipping that nobody declared: of the update, of each local step, of each image's gradient."""

import contextlib
import math
from dataclasses import replace

from attacker.diagnosis.inquiry import Finding, Inquiry
from attacker.diagnosis.replay import Variation, replay
from attacker.diagnosis.residual import difference, energy, least_squares_factor
from attacker.gradient_clipping import GradientClipping
from attacker.local_update import couples_images
from fl_sim.parameters import scale

_ROUND = 1e-5
_SHARES = (0.9, 0.6, 0.3, 0.1, 0.03)
"""First guesses of a norm inside training, as shares of the longest gradient of a step."""


def clipping(inquiry: Inquiry) -> list[Finding]:
    """Find clipping, each kind with the norm that explains most."""
    training = inquiry.training
    found = _of_update(inquiry)
    found.extend(_inside(inquiry, "step", "the gradient of each local step"))
    if not couples_images(training.model) and not training.draws_dropout:
        with contextlib.suppress(RuntimeError):  # torch.func cannot map every model over examples
            found.extend(_inside(inquiry, "example", "each image's gradient"))
    return found


def is_round(norm: float) -> bool:
    """Say whether a norm has two significant digits at most, up to rounding: what people choose as a bound."""
    return norm > 0 and abs(float(f"{norm:.1e}") / norm - 1.0) < _ROUND


def _of_update(inquiry: Inquiry) -> list[Finding]:
    """Find an update that is shorter than the replayed one and as long as a bound that somebody chose."""
    factor = least_squares_factor(inquiry.plain.delta, inquiry.delta)
    norm = math.sqrt(energy(inquiry.delta)) / inquiry.unit
    if not (0.0 < factor < 1.0 and is_round(norm)):
        return []
    residual = energy(difference(inquiry.delta, inquiry.plain.delta, factor)) / energy(inquiry.delta)
    return [
        Finding(
            cause="clipping",
            detail=f"what is sent is shortened to norm {norm:.3g}, a round number, from {norm / factor:.4g}",
            residual=residual,
            evidence=inquiry.evidence(residual, inquiry.plain.variance),
        )
    ]


def _inside(inquiry: Inquiry, what: str, detail: str) -> list[Finding]:
    """Fit the norm of clipping inside training."""
    training = inquiry.training

    def clipped_at(norm: float) -> Variation:
        return replace(training.declared(), clipping=GradientClipping(**{what: norm}))

    mean_gradient = scale(inquiry.plain.delta, 1.0 / (training.recipe.learning_rate * training.num_steps))
    longest = 2.0 * math.sqrt(energy(mean_gradient))
    if not longest or (what == "step" and training.num_steps == 1):
        return []  # of a single step it is the clipping of the update
    tried = {share: inquiry.residual_of(replay(training, clipped_at(share * longest))) for share in _SHARES}
    first = min(tried, key=lambda share: tried[share]) * longest
    norm, replayed = inquiry.fit(clipped_at, (0.95 * first, first), (1e-6 * longest, 10.0 * longest))
    if inquiry.residual_of(replayed) >= inquiry.residual:
        return []
    return [inquiry.found("clipping", f"{detail} is clipped to norm {norm:.4g}", replayed, num_fitted=1)]
