"""SGD with momentum on gradients that may be held for several local steps.

    v <- mu v + g;   w <- w - eta v,        s steps on one held g in closed form

Where the gradients come from is not decided here: `attacker.local_update` takes those of one client,
`attacker.many_local_updates` those of several clients at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attacker.local_steps import HeldStep
from attacker.segments import TrainingState
from fl_sim.parameters import Parameters, scale
from fl_sim.records import LocalTraining


class GradientOf(Protocol):
    """The gradient of one step's loss."""

    def __call__(
        self,
        weights: Parameters,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        step: HeldStep,
        *,
        differentiable: bool,
    ) -> dict[str, Tensor]:
        """Return the gradient by the weights, shaped as they are; buffers are updated in place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSgd:
    """Local training from one state to the next; see `attacker.segments.Follow`.

    Attributes:
        gradient_of: Where gradients come from.
        recipe: eta and momentum.
    """

    gradient_of: GradientOf
    recipe: LocalTraining

    def __call__(
        self,
        state: TrainingState,
        images: Tensor,
        labels: Tensor,
        steps: Sequence[HeldStep],
        *,
        differentiable: bool,
    ) -> TrainingState:
        """Return the state after the steps; the given one stays as it is, but for its buffers."""
        weights, velocity, eta = state.weights, state.velocity, self.recipe.learning_rate
        for step in steps:
            gradient = self.gradient_of(weights, state.buffers, images, labels, step, differentiable=differentiable)
            kept, from_velocity, from_gradient, to_velocity = held_factors(self.recipe.momentum, step.num_steps)
            weights = _moved(weights, gradient, -eta * from_gradient)
            if self.recipe.momentum:
                weights = _moved(weights, velocity, -eta * from_velocity)
                velocity = _moved(scale(velocity, kept), gradient, to_velocity)
        return TrainingState(weights=weights, velocity=velocity, buffers=state.buffers)


def _moved(start: Parameters, direction: Parameters, distance: float) -> dict[str, Tensor]:
    """Return ``start + distance * direction`` in one pass over memory, which is what a local step mostly costs."""
    return {name: torch.add(tensor, direction[name], alpha=distance) for name, tensor in start.items()}


def held_factors(momentum: float, num_steps: int) -> tuple[float, float, float, float]:
    """Sum s steps of SGD with momentum mu on one held gradient g, from velocity v, in closed form.

        v_s = mu^s v + (1 - mu^s) / (1 - mu) g
        w_0 - w_s = eta (S v + (s - S) / (1 - mu) g),   S = mu + ... + mu^s = mu (1 - mu^s) / (1 - mu)

    Returns:
        The factors of v in v_s, of v in the step, of g in the step, and of g in v_s.
    """
    kept = momentum**num_steps
    geometric = (1.0 - kept) / (1.0 - momentum)
    from_velocity = momentum * geometric
    return kept, from_velocity, (num_steps - from_velocity) / (1.0 - momentum), geometric
