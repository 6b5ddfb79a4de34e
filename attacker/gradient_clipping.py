"""What a client that clips inside its local training does to the gradient of a step, as a differentiable function.

    g = 1/n sum_i g_i min(1, C_e / |g_i|),       then   g min(1, C_s / |g|)

Clipping draws nothing, so that an attacker who knows the norms can follow it exactly, whichever images it tries.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from attacker.chunked_gradient import couples_images
from fl_sim.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientClipping:
    """Norms over all tensors together; infinite where nothing is clipped.

    Attributes:
        example: C_e, of the gradient of each image, > 0.
        step: C_s, of the gradient of each local step, > 0.
    """

    example: float = math.inf
    step: float = math.inf

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose examples cannot be clipped one by one.

        Raises:
            ValueError: If it has BatchNorm in training mode and examples are clipped.
        """
        if self.example < math.inf and couples_images(model):
            raise ValueError(
                f"clipping of examples needs a model that treats each image by itself, got {type(model).__name__} with "
                "BatchNorm in training mode"
            )


def clipped(parameters: Parameters, norm: float, *, hidden_energy: float = 0.0) -> dict[str, Tensor]:
    """Return named tensors, scaled down to a norm where they are longer; differentiable.

    Args:
        parameters: What is clipped.
        norm: > 0.
        hidden_energy: Squared norm of what the client clipped as well and is not in ``parameters``: its noise.
    """
    squares = torch.stack([tensor.square().sum() for tensor in parameters.values()]).sum() + hidden_energy
    # Not the norm itself: its derivative at a zero update is infinite.
    factor = norm / squares.clamp_min(norm**2).sqrt()
    return {name: tensor * factor for name, tensor in parameters.items()}


def mean_of_clipped_examples(
    model: nn.Module,
    weights: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: float,
) -> dict[str, Tensor]:
    """Return the mean over images of their clipped gradients, by name; differentiable where autograd records.

    Args:
        model: Treats each image by itself.
        weights: The trainable tensors.
        buffers: The others.
        images: (n, C, H, W).
        labels: (n,), int64, or (n, K), probabilities.
        norm: C_e, > 0.

    References:
        Abadi et al., Deep Learning with Differential Privacy, CCS 2016, Algorithm 1 (the clipping).
    """

    def loss_of(own: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**own, **buffers}, (image.unsqueeze(0),))
        return functional.cross_entropy(logits, label.unsqueeze(0))

    each = vmap(grad(loss_of), in_dims=(None, 0, 0))(dict(weights), images, labels)
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in each.values()]).sum(dim=0)
    factors = norm / squares.clamp_min(norm**2).sqrt()  # (n,)
    return {name: torch.tensordot(factors, gradient, dims=1) / len(images) for name, gradient in each.items()}
