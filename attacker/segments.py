"""The adjoint of local SGD with memory for a few steps instead of all.

    forward    w_0 -> w_s -> w_2s -> ... -> w_U      no graph; the state before each segment of s steps is stored
    backward   for each segment, the last first:     its graph is made anew from its stored state, and
               (w_end_bar, v_end_bar) -> (w_start_bar, v_start_bar, x_bar)  with the second derivatives in it

The value is that of the whole graph. Memory falls from U graphs to U / s states and s graphs, for one more evaluation
of each gradient (a third more arithmetic). With s = 1 it is the adjoint that stores weights only. Torch's activation
checkpointing does not serve here: it runs a segment anew for each gradient that is taken inside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from attacker.local_steps import HeldStep
from fl_sim.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Where local training stands.

    Attributes:
        weights: w_k.
        velocity: v_k; empty without momentum.
        buffers: Updated in place by the model.
    """

    weights: Parameters
    velocity: Parameters
    buffers: Mapping[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """Return w_k and v_k, in a fixed order."""
        return [*self.weights.values(), *self.velocity.values()]

    def as_leaves(self) -> "TrainingState":
        """Return the same state without history, requiring a gradient; its buffers may be changed."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_()

        return TrainingState(
            weights={name: leaf(tensor) for name, tensor in self.weights.items()},
            velocity={name: leaf(tensor) for name, tensor in self.velocity.items()},
            buffers={name: tensor.clone() for name, tensor in self.buffers.items()},
        )


class Follow(Protocol):
    """Local training over some steps."""

    def __call__(
        self, state: TrainingState, images: Tensor, labels: Tensor, steps: Sequence[HeldStep], *, differentiable: bool
    ) -> TrainingState:
        """Return the state after the steps; the given one stays as it is, but for its buffers."""
        ...


def follow_in_segments(
    follow: Follow, start: TrainingState, images: Tensor, labels: Tensor, steps: Sequence[HeldStep], *, length: int
) -> dict[str, Tensor]:
    """Return the weights after all steps, differentiable once in images and labels.

    Args:
        follow: Runs some steps.
        start: Constant.
        images: As for `simulate_local_update`.
        labels: As for `simulate_local_update`.
        steps: All of them.
        length: Steps whose graph is held at a time, >= 1.

    Raises:
        ValueError: If the length is below 1.
    """
    if length < 1:
        raise ValueError(f"segment_length must be >= 1, got {length}")
    segments = [steps[first : first + length] for first in range(0, len(steps), length)]
    weights = cast(tuple[Tensor, ...], _Segments.apply(follow, start, segments, images, labels))  # type: ignore[no-untyped-call]
    return dict(zip(start.weights, weights, strict=True))


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        follow: Follow,
        start: TrainingState,
        segments: Sequence[Sequence[HeldStep]],
        images: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, ...]:
        state = start
        stored: list[TrainingState] = []
        for segment in segments:
            stored.append(state.as_leaves())
            state = follow(state, images, labels, segment, differentiable=False)
        ctx.follow, ctx.segments, ctx.stored = follow, segments, stored
        ctx.save_for_backward(images, labels)
        return tuple(state.weights.values())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, labels = (
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True)
        )
        wanted = [tensor for tensor in (images, labels) if tensor.requires_grad]
        found = [torch.zeros_like(tensor) for tensor in wanted]
        cotangents = [*outer, *(torch.zeros_like(tensor) for tensor in ctx.stored[0].velocity.values())]
        for stored, segment in zip(reversed(ctx.stored), reversed(ctx.segments), strict=True):
            state = stored.as_leaves()
            with torch.enable_grad():
                end = ctx.follow(state, images, labels, segment, differentiable=True)
            *cotangents, last = _products(end.tensors(), cotangents, state.tensors(), wanted)
            for sum_, gradient in zip(found, last, strict=True):
                sum_.add_(gradient)
        gradients = iter(found)
        return None, None, None, *(next(gradients) if needed else None for needed in ctx.needs_input_grad[3:])


def _products(
    outputs: list[Tensor], cotangents: list[Tensor], state: list[Tensor], wanted: list[Tensor]
) -> tuple[Any, ...]:
    """Return the cotangents of the state, and then those of images and labels as one list."""
    gradients = torch.autograd.grad(outputs, [*state, *wanted], cotangents, materialize_grads=True)
    return *gradients[: len(state)], list(gradients[len(state) :])
