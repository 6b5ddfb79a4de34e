"""The local training of several clients at once: one batch of B independent trainings instead of B after each other.

    w_b <- w_b - eta dL(w_b, x_b)/dw_b,   b = 1..B:      every tensor has one more axis, in front

The network is called under `torch.func.vmap`, all else is ordinary autograd, and the sum of the B losses has the B
gradients side by side because no client's loss depends on another's weights. Each result equals that of
`simulate_local_update` to rounding. Fewer and larger operations pay where they are too small to fill the device: tiny
networks and batches on a CPU, most on a GPU (docs/scaling.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from attacker.gradient_clipping import GradientClipping, clipped, mean_of_clipped_examples
from attacker.held_sgd import HeldSgd
from attacker.local_steps import HeldStep, Simulation, held_steps, takes_shared_images
from fl_sim.parameters import Parameters
from fl_sim.records import LocalTraining


def simulate_many_local_updates(
    model: nn.Module,
    parameters: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    recipe: LocalTraining,
    *,
    simulation: Simulation = "full",
    orders: Tensor | None = None,
    segment_length: int | None = None,
    clipping: GradientClipping | None = None,
) -> dict[str, Tensor]:
    """Return what `attacker.local_update.simulate_local_update` returns for each of B clients, stacked.

    Args:
        model: Pixels to logits; called functionally. BatchNorm in training mode keeps each client's statistics apart.
        parameters: w_t of each client, (B, ...), by name; an expanded view where all start from the same.
        buffers: The buffers sent out with w_t, (B, ...), likewise.
        images: (B, N, C, H, W), or (B, E, N, C, H, W), a set for each epoch; pixels.
        labels: (B, N), int64, or (B, N, K), probabilities; position n of each epoch has this label.
        recipe: E, m, eta and momentum, of all clients.
        simulation: How faithfully the steps are followed, see `attacker.local_steps`.
        orders: (B, E, N), int64: in epoch e client b visits its images ``orders[b, e]``; ``None``: as they stand.
        segment_length: Bounds the memory, see `attacker.segments`; ``None`` keeps the graph of all steps.
        clipping: What each client clips in each local step; ``None``: nothing.

    Returns:
        The mean gradients, (B, ...), by name.

    Raises:
        ValueError: If the shapes do not fit each other or the recipe, or clipping of examples does not fit the model.
    """
    _check_shapes(parameters, buffers, images, labels, recipe, orders, simulation)
    clipping = clipping or GradientClipping()
    clipping.check_model(model)
    num_images = labels.shape[1]
    steps = _steps(simulation, recipe, num_images, orders)
    training = HeldSgd(gradient_of=_GradientOfEach(model=model, clipping=clipping), recipe=recipe)
    return training.mean_gradient(
        parameters, buffers, images, labels, steps, num_images=num_images, segment_length=segment_length
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _GradientOfEach:
    """The gradients of all clients; see `attacker.held_sgd.GradientOf`."""

    model: nn.Module
    clipping: GradientClipping

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
        own = _taken(images if images.dim() == 5 else images[:, step.epoch], step.chosen)
        attributed = _taken(labels, step.chosen)
        if self.clipping.example < math.inf:
            gradient = self._of_clipped_examples(weights, buffers, own, attributed, differentiable=differentiable)
        else:
            gradient = self._plain(weights, buffers, own, attributed, differentiable=differentiable)
        norm = self.clipping.step
        return gradient if norm == math.inf else vmap(lambda one: clipped(one, norm))(gradient)

    def _plain(
        self,
        weights: Parameters,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        differentiable: bool,
    ) -> dict[str, Tensor]:
        inputs = weights if differentiable else {name: tensor.detach() for name, tensor in weights.items()}
        inputs = {name: tensor if tensor.requires_grad else tensor.requires_grad_() for name, tensor in inputs.items()}

        def logits_of(own: Parameters, buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self.model, {**own, **buffers}, (images,))

        with torch.enable_grad():
            logits = vmap(logits_of, randomness="different")(inputs, dict(buffers), images)
            losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
            loss = losses.reshape(len(labels), -1).mean(dim=1).sum()
            gradients = torch.autograd.grad(loss, list(inputs.values()), create_graph=differentiable)
        return dict(zip(inputs, gradients, strict=True))

    def _of_clipped_examples(
        self,
        weights: Parameters,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        differentiable: bool,
    ) -> dict[str, Tensor]:
        def mean_of(
            own: Parameters, buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor
        ) -> dict[str, Tensor]:
            return mean_of_clipped_examples(self.model, own, buffers, images, labels, norm=self.clipping.example)

        with torch.set_grad_enabled(differentiable):
            return vmap(mean_of)(dict(weights), dict(buffers), images, labels)


def _steps(
    simulation: Simulation, recipe: LocalTraining, num_images: int, orders: Tensor | None
) -> tuple[HeldStep, ...]:
    """Return the gradients of a simulation; ``chosen`` is (B, n) where clients visit their images in orders."""
    if orders is None:
        return held_steps(simulation, recipe, num_images, None)
    by_client = [held_steps(simulation, recipe, num_images, order) for order in orders]

    def chosen(same: Sequence[HeldStep]) -> Tensor | slice:
        tensors = [step.chosen for step in same if isinstance(step.chosen, Tensor)]
        return torch.stack(tensors) if tensors else same[0].chosen

    return tuple(replace(same[0], chosen=chosen(same)) for same in zip(*by_client, strict=True))


def _taken(of_each: Tensor, chosen: Tensor | slice) -> Tensor:
    """Return each client's chosen entries, (B, n, ...), of (B, N, ...)."""
    if isinstance(chosen, slice):
        return of_each[:, chosen]
    return of_each[torch.arange(len(of_each), device=of_each.device)[:, None], chosen]


def _check_shapes(
    parameters: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    recipe: LocalTraining,
    orders: Tensor | None,
    simulation: Simulation,
) -> None:
    if images.dim() not in (5, 6):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, E, N, C, H, W), got shape {tuple(images.shape)}")
    clients, num_images = images.shape[0], images.shape[-4]
    if images.dim() == 6 and images.shape[1] != recipe.epochs:
        raise ValueError(f"images must hold one set for each of {recipe.epochs} epochs, got {images.shape[1]} sets")
    if images.dim() == 6 and images.shape[1] > 1 and takes_shared_images(simulation):
        raise ValueError(f"simulation {simulation!r} takes gradients of shared images (B, N, C, H, W), got 6-d images")
    if labels.dim() != 2 + labels.is_floating_point() or labels.shape[:2] != (clients, num_images) or not num_images:
        raise ValueError(
            f"labels must have shape ({clients}, {num_images}), or ({clients}, {num_images}, K) for probabilities, "
            f"with B >= 1 and N >= 1, got {tuple(labels.shape)} of {labels.dtype}"
        )
    if orders is not None and orders.shape != (clients, recipe.epochs, num_images):
        raise ValueError(f"orders must have shape {(clients, recipe.epochs, num_images)}, got {tuple(orders.shape)}")
    for name, tensor in (*parameters.items(), *buffers.items()):
        if tensor.shape[:1] != (clients,):
            raise ValueError(f"{name} must be stacked for {clients} clients, got shape {tuple(tensor.shape)}")
