"""SGD with momentum on gradients that may be held for several local steps.

    v <- mu v + g;   w <- w - eta v,        s steps on one held g in closed form

Where the gradients come from is not decided here: `attacker.local_update` takes those of one client,
`attacker.many_local_updates` those of several clients at once, whose tensors have one more axis in front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attacker.local_steps import HeldStep
from attacker.segments import TrainingState, follow_in_segments
from fl_sim.parameters import Parameters, scale, subtract
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

    def mean_gradient(
        self,
        parameters: Parameters,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        steps: Sequence[HeldStep],
        *,
        num_images: int,
        segment_length: int | None,
    ) -> dict[str, Tensor]:
        """Return ``(w_0 - w_U) / (eta U)`` of a whole local training; differentiable where images or labels are.

        Args:
            parameters: w_0; the given tensors stay as they are, buffers too.
            buffers: Before the first step.
            images: Shaped as ``gradient_of`` takes them.
            labels: Likewise.
            steps: The gradients of the simulation.
            num_images: N_c, of one client.
            segment_length: Bounds the memory, see `attacker.segments`; ``None`` keeps the graph of all steps.
        """
        start = TrainingState(
            weights={name: tensor.detach() for name, tensor in parameters.items()},
            velocity={name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
            if self.recipe.momentum
            else {},
            # BatchNorm updates its buffers in place, and several clients may be given as one expanded view.
            buffers={
                name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in buffers.items()
            },
        )
        differentiable = (images.requires_grad or labels.requires_grad) and torch.is_grad_enabled()
        if differentiable and segment_length is not None and segment_length < len(steps):
            final = follow_in_segments(self, start, images, labels, steps, length=segment_length)
        else:
            final = self(start, images, labels, steps, differentiable=differentiable).weights
        return scale(subtract(start.weights, final), 1.0 / (self.recipe.learning_rate * self.recipe.steps(num_images)))

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
