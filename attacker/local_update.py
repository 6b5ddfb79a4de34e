"""The client's local training as a differentiable function of its images.

    w_0 = w_t;   v <- mu v + g;   w <- w - eta v;        returns (w_0 - w_U) / (eta U), the mean gradient

Given the true images in the true order, ``full`` equals what a client computes with ``torch.optim.SGD``; the cheaper
simulations of `attacker.local_steps` hold a gradient for several steps. `attacker.segments` bounds the memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from attacker.chunked_gradient import chunked_gradient, couples_images
from attacker.gradient_clipping import GradientClipping, clipped, mean_of_clipped_examples
from attacker.held_sgd import HeldSgd, held_factors
from attacker.local_steps import HeldStep, Simulation, held_steps, takes_shared_images
from fl_sim.parameters import Parameters
from fl_sim.records import LocalTraining


def simulate_local_update(
    model: nn.Module,
    parameters: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    recipe: LocalTraining,
    *,
    simulation: Simulation = "full",
    order: Tensor | None = None,
    images_at_once: int | None = None,
    segment_length: int | None = None,
    clipping: GradientClipping | None = None,
) -> dict[str, Tensor]:
    """Return the mean gradient, ``-delta / (eta * U)``, that a client with these images would send.

    The result is differentiable with respect to images and labels that require a gradient; otherwise no graph is kept.
    The loss is the mean cross-entropy over a batch; the last batch of an epoch may be smaller. The model is called in
    the mode it is in, and nothing given is changed.

    Args:
        model: Pixels to logits; called functionally.
        parameters: w_t, the trainable tensors by name.
        buffers: The buffers sent out with w_t.
        images: (N, C, H, W), the same images in each epoch, or (E, N, C, H, W), a set for each epoch; pixels.
        labels: (N,), int64, or (N, K), probabilities; position n of each epoch has this label.
        recipe: E, m, eta and momentum.
        simulation: How faithfully the steps are followed, see `attacker.local_steps`.
        order: (E, N), int64: epoch e visits the images ``order[e]`` one after the other; ``None``: as they stand. Only
            ``full`` depends on it.
        images_at_once: Bounds the memory: larger batches are gone through in parts of that many images, which needs a
            model that treats each image by itself, and constant labels; ``None``: as a whole.
        segment_length: Bounds the memory: the graph of that many steps is kept at a time, see `attacker.segments`;
            ``None``: that of all.
        clipping: What the client clips in each local step; ``None``: nothing. That of examples needs a model that
            treats each image by itself.

    Raises:
        ValueError: If the shapes do not fit each other or the recipe, or the model or labels do not allow parts.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Algorithm 2 (SimUpdate) and Sec. 5.1.
    """
    _check_shapes(images, labels, recipe, order, simulation)
    _check_parts(model, labels, images_at_once)
    clipping = clipping or GradientClipping()
    clipping.check_model(model)
    steps = held_steps(simulation, recipe, len(labels), order)
    training = HeldSgd(
        gradient_of=_GradientOfOne(model=model, images_at_once=images_at_once, clipping=clipping), recipe=recipe
    )
    return training.mean_gradient(
        parameters, buffers, images, labels, steps, num_images=len(labels), segment_length=segment_length
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _GradientOfOne:
    """The gradient of one client; see `attacker.held_sgd.GradientOf`."""

    model: nn.Module
    images_at_once: int | None
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
        own = (images if images.dim() == 4 else images[step.epoch])[step.chosen]
        attributed, norm, size = labels[step.chosen], self.clipping.example, self.images_at_once
        if size is None or len(own) <= size:
            gradient = _gradient(
                self.model, weights, buffers, own, attributed, norm=norm, differentiable=differentiable
            )
        else:
            gradient = _gradient_in_parts(self.model, weights, buffers, own, attributed, norm=norm, size=size)
        return gradient if self.clipping.step == math.inf else clipped(gradient, self.clipping.step)


def gradient_gain(recipe: LocalTraining, num_examples: int) -> float:
    """Return the mean gradient that a client sends if its gradient is 1 in every step: 1 without momentum, else more.

    Args:
        recipe: E, m and momentum.
        num_examples: N_c.
    """
    num_steps = recipe.steps(num_examples)
    return held_factors(recipe.momentum, num_steps)[2] / num_steps


def _gradient(
    model: nn.Module,
    weights: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: float,
    differentiable: bool,
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy with respect to the weights, by name; each example's clipped."""
    if norm < math.inf:
        with torch.set_grad_enabled(differentiable):
            return mean_of_clipped_examples(model, weights, buffers, images, labels, norm=norm)
    inputs = weights if differentiable else {name: tensor.detach() for name, tensor in weights.items()}
    inputs = {name: tensor if tensor.requires_grad else tensor.requires_grad_() for name, tensor in inputs.items()}
    with torch.enable_grad():
        logits = functional_call(model, {**inputs, **buffers}, (images,))
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(inputs.values()), create_graph=differentiable)
    return dict(zip(inputs, gradients, strict=True))


def _gradient_in_parts(
    model: nn.Module,
    weights: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: float,
    size: int,
) -> dict[str, Tensor]:
    """Return the same, with the memory of ``size`` images."""
    names = tuple(weights)

    def gradient_of(part: Tensor, attributed: Tensor, own: Sequence[Tensor], keep_graph: bool) -> Sequence[Tensor]:
        named = dict(zip(names, own, strict=True))
        gradient = _gradient(model, named, buffers, part, attributed, norm=norm, differentiable=keep_graph)
        return tuple(gradient.values())

    gradients = chunked_gradient(gradient_of, images, labels, tuple(weights.values()), size=size)
    return dict(zip(names, gradients, strict=True))


def _check_parts(model: nn.Module, labels: Tensor, images_at_once: int | None) -> None:
    if images_at_once is None:
        return
    if images_at_once < 1:
        raise ValueError(f"images_at_once must be >= 1, got {images_at_once}")
    if labels.requires_grad:
        raise ValueError("images_at_once needs constant labels, got labels that require a gradient; leave it unset")
    if couples_images(model):
        raise ValueError(
            f"images_at_once needs a model that treats each image by itself, got {type(model).__name__} with BatchNorm "
            "in training mode; leave it unset"
        )


def _check_shapes(
    images: Tensor, labels: Tensor, recipe: LocalTraining, order: Tensor | None, simulation: Simulation
) -> None:
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (N, C, H, W) or (E, N, C, H, W), got shape {tuple(images.shape)}")
    if images.dim() == 5 and images.shape[0] != recipe.epochs:
        raise ValueError(f"images must hold one set for each of {recipe.epochs} epochs, got {images.shape[0]} sets")
    if images.dim() == 5 and images.shape[0] > 1 and takes_shared_images(simulation):
        raise ValueError(f"simulation {simulation!r} takes gradients of shared images (N, C, H, W), got 5-d images")
    num_images = images.shape[-4]
    if labels.dim() != 1 + labels.is_floating_point() or len(labels) != num_images or not num_images:
        raise ValueError(
            f"labels must have shape ({num_images},), or ({num_images}, K) for probabilities, with N >= 1, "
            f"got {tuple(labels.shape)} of {labels.dtype}"
        )
    if order is not None and order.shape != (recipe.epochs, len(labels)):
        raise ValueError(f"order must have shape {(recipe.epochs, len(labels))}, got {tuple(order.shape)}")
