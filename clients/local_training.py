"""What a client computes on its private images: a gradient (FedSGD) or E epochs of mini-batch SGD (FedAvg).

The loss is the mean cross-entropy over a batch. Plain PyTorch; the attacker's simulation must agree with this file.
A client that defends itself inside training gives its own ``step_gradient`` and, where it samples, its own ``batches``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_sim.batch_order import epoch_order
from fl_sim.records import LocalTraining

StepGradient: TypeAlias = Callable[[nn.Module, Tensor, Tensor, int], tuple[Mapping[str, Tensor], float | None]]
"""Model, images, labels and the number of the local step (from 0) to the gradient and, if it may be told, the loss."""

Batches: TypeAlias = Callable[[int, LocalTraining, torch.Generator], Iterable[Tensor]]
"""N_c, the recipe and the client's generator to the indices of each local step's images."""


def gradient_on(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over all images, at the model's weights.

    Args:
        model: The model, in training mode.
        images: (N, C, H, W), pixels in [0, 1].
        labels: (N,), int64.

    Returns:
        One gradient for each trainable tensor, by name.

    References:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """
    gradient, _ = gradient_and_loss(model, images, labels)
    return gradient


def gradient_and_loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], float]:
    """Return `gradient_on` the same arguments, and the mean loss."""
    loss = functional.cross_entropy(model(images), labels)
    return differentiate(loss, model), float(loss.detach())


def differentiate(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of a loss by the name of each of the model's parameters; zero where it has none."""
    parameters = dict(model.named_parameters())
    reached = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(reached.values()), materialize_grads=True)
    found = dict(zip(reached, gradients, strict=True))
    return {name: found[name] if name in found else torch.zeros_like(parameters[name]) for name in parameters}


def train_locally(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: LocalTraining,
    *,
    generator: torch.Generator,
    step_gradient: StepGradient | None = None,
    batches: Batches | None = None,
) -> float | None:
    """Train the model in place.

    Args:
        model: The model, in training mode, at the global weights.
        images: (N, C, H, W), pixels in [0, 1].
        labels: (N,), int64.
        recipe: Epochs, batch size, learning rate, momentum and batch order.
        generator: Decides the random batch order; known to the client only.
        step_gradient: The gradient of a local step; ``None`` takes the plain one.
        batches: How batches are drawn; ``None`` takes `epoch_batches`.

    Returns:
        The mean loss over the local steps; ``None`` where ``step_gradient`` does not tell it.

    References:
        McMahan et al. 2017, Algorithm 1, ClientUpdate.
    """
    compute = step_gradient or _plain
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
    losses: list[float] = []
    for step, batch in enumerate((batches or epoch_batches)(len(labels), recipe, generator)):
        gradient, loss = compute(model, images[batch], labels[batch], step)
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name]
        optimizer.step()
        if loss is not None:
            losses.append(loss)
    return sum(losses) / len(losses) if losses else None


def epoch_batches(num_examples: int, recipe: LocalTraining, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield E epochs of batches: every image once in an epoch, m at a time, the rest in a smaller last batch.

    Args:
        num_examples: N_c.
        recipe: E, m and the order.
        generator: Moves on with every random order.
    """
    for _ in range(recipe.epochs):
        yield from epoch_order(num_examples, recipe.order, generator).split(recipe.batch_size or num_examples)


def poisson_batches(num_examples: int, recipe: LocalTraining, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield as many batches as `epoch_batches`; each image is in each of them with probability m / N_c, independently.

    A batch may be empty. The order of the recipe plays no part.

    Args:
        num_examples: N_c.
        recipe: E and m.
        generator: Moves on with every batch.

    References:
        Abadi et al., Deep Learning with Differential Privacy, CCS 2016, Section 3.1.
    """
    rate = sampling_rate(num_examples, recipe)
    for _ in range(recipe.steps(num_examples)):
        yield (torch.rand(num_examples, generator=generator) < rate).nonzero().flatten()


def sampling_rate(num_examples: int, recipe: LocalTraining) -> float:
    """Return m / N_c, the probability of an image to be in a sampled batch; 1 where m is all of them or more."""
    return min(1.0, (recipe.batch_size or num_examples) / num_examples)


def _plain(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> tuple[Mapping[str, Tensor], float | None]:
    return gradient_and_loss(model, images, labels)
