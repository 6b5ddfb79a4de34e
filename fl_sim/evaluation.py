"""How good a model is: central accuracy and loss on test images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fl_sim.datasets import pixels
from fl_sim.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result of a test.

    Attributes:
        accuracy: Share of correct images, in [0, 1].
        loss: Mean cross-entropy, >= 0; not finite once training has diverged.
    """

    accuracy: float
    loss: float


def evaluate(
    model: nn.Module,
    parameters: Parameters,
    buffers: Parameters,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
) -> Evaluation:
    """Test a model at given weights; the model itself is left as it was.

    Args:
        model: The architecture; its own weights are not used, and each of its modules keeps its mode.
        parameters: Trainable tensors by name.
        buffers: Persistent buffers by name (BatchNorm statistics, used as they are).
        images: (N, C, H, W), uint8, N >= 1.
        labels: (N,), int64.
        batch_size: Images at once, >= 1; changes the speed and nothing else.

    Raises:
        ValueError: If there is nothing to test on, or the batch size is less than 1.
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one test image, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    weights = {**parameters, **buffers}
    device = next(iter(weights.values())).device
    modes = {module: module.training for module in model.modules()}
    num_correct, total_loss = 0, 0.0
    model.eval()
    try:
        with torch.no_grad():
            for image_batch, label_batch in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                targets = label_batch.to(device)
                logits: Tensor = functional_call(model, weights, (pixels(image_batch).to(device),))
                num_correct += int((logits.argmax(dim=1) == targets).sum())
                total_loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
    finally:
        for module, training in modes.items():
            module.training = training
    return Evaluation(accuracy=num_correct / len(images), loss=total_loss / len(images))
