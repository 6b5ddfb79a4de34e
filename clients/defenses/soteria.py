"""Soteria: the gradient of one linear layer's weight is taken on a pruned representation of each image.

    dL/dW = 1/N sum_n delta_n (mask_n * r_n)^T,   mask_n = 0 where |r_ni| / |d r_ni / d x_n| is among the largest

with r_n the layer's input for image x_n. The layer's output stays as it is, and with it the loss and other gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.local_training import differentiate, gradient_on
from fl_sim.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Soteria:
    """Prunes each image's representation in the weight gradient of one linear layer.

    What goes first is a feature that is large while it hardly reacts to the image: an image that explains its absence
    lies furthest away.

    Attributes:
        pruned_percent: Features of each image's representation to prune, in [0, 100]; rounded to features, one at least
            above zero.
        layer: Name of the linear layer that reads the representation; ``None`` takes the first one behind another layer
            with weights (where convolutions hand over to the classifier), and the only one of logistic regression.
        num_probes: Random directions by which a feature's reaction is measured, >= 1; a layer with no more inputs than
            that is measured exactly. The price is one backward pass each, in every local step.

    References:
        Sun et al., Soteria: Provable Defense against Privacy Leakage in Federated Learning from Representation
        Perspective, CVPR 2021; with its released code's approximation of the inverse Jacobian, |r_i| / |d r_i / d x|.
    """

    pruned_percent: float
    layer: str | None = None
    num_probes: int = 128

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.pruned_percent <= 100:
            raise ValueError(f"pruned_percent must be in [0, 100], got {self.pruned_percent}")
        if self.num_probes < 1:
            raise ValueError(f"num_probes must be >= 1, got {self.num_probes}")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without the layer.

        Raises:
            ConfigError: If there is no such layer, or it is not linear.
        """
        self._find_layer(model)

    def gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the gradient of the mean loss, with the chosen layer's weight gradient on pruned representations."""
        if self.pruned_percent == 0:
            return gradient_on(model, images, labels)
        images = images.detach().requires_grad_()

        def prune(module: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            (representation,) = inputs
            if representation.ndim != 2:
                raise ConfigError(
                    f"soteria: expected one representation for each image, shape (N, F), got "
                    f"{tuple(representation.shape)}; name another layer"
                )
            kept = representation.detach() * self._mask(representation, images, generator)
            past_the_weight = functional.linear(representation, module.weight.detach(), module.bias)
            through_the_weight = functional.linear(kept, module.weight)
            # The value is the layer's own output to the last bit; only the weight's gradient comes the other way.
            return past_the_weight + (through_the_weight - through_the_weight.detach())

        hook = self._find_layer(model).register_forward_hook(prune)
        try:
            return differentiate(functional.cross_entropy(model(images), labels), model)
        finally:
            hook.remove()

    def _mask(self, representation: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        num_pruned = max(1, round(self.pruned_percent / 100 * representation.shape[1]))
        reaction = sensitivity(representation, images, num_probes=self.num_probes, generator=generator)
        exposed = representation.detach().abs() / (reaction + 1e-12)
        return torch.ones_like(exposed).scatter_(1, exposed.topk(num_pruned, dim=1).indices, 0.0)

    def _find_layer(self, model: nn.Module) -> nn.Linear:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if not layers:
            raise ConfigError("soteria needs a model with a linear layer, got none; take another model")
        if self.layer is not None:
            if self.layer not in layers:
                raise ConfigError(f"soteria: expected layer to be one of {', '.join(layers)}; got {self.layer!r}")
            return layers[self.layer]
        with_weights = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
        behind = [module for module in with_weights[1:] if isinstance(module, nn.Linear)]
        return behind[0] if behind else next(iter(layers.values()))


def sensitivity(representation: Tensor, images: Tensor, *, num_probes: int, generator: torch.Generator) -> Tensor:
    """Return the norm of each feature's derivative by its own image, |d r_ni / d x_n|, shape (N, F).

    With J_n the Jacobian of image n, ``E (J_n v)_i^2 = |J_ni|^2`` for v ~ N(0, 1): a mean over random directions
    estimates all features at once, with a relative error of about ``sqrt(1 / (2 num_probes))``.

    Args:
        representation: (N, F), computed from ``images``; its graph is kept.
        images: (N, C, H, W), requiring a gradient.
        num_probes: Directions; with F of them or more every derivative is computed exactly.
        generator: Draws the directions.
    """
    # Features of one image do not depend on the others: the derivative of the batch's sum holds that of each.
    if representation.shape[1] <= num_probes:
        rows = [
            torch.autograd.grad(representation[:, feature].sum(), images, retain_graph=True)[0]
            for feature in range(representation.shape[1])
        ]
        return torch.stack([row.flatten(1).norm(dim=1) for row in rows], dim=1)
    weights = torch.zeros_like(representation, requires_grad=True)
    # J^T weights is linear in the weights: its derivative along v, taken backwards, is J v.
    (pulled_back,) = torch.autograd.grad(representation, images, weights, create_graph=True)
    squares = torch.zeros_like(representation)
    for _ in range(num_probes):
        direction = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        (pushed_forward,) = torch.autograd.grad(pulled_back, weights, direction, retain_graph=True)
        squares += pushed_forward.square()
    return (squares / num_probes).sqrt()
