"""The last step of every gradient-matching attack: pictures, and how well these very pictures explain the update."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from attacker.attack import Reconstruction
from attacker.gradient_matching import Optimum
from attacker.inversion_problem import InversionProblem


def reconstruction(
    problem: InversionProblem,
    pixels: Tensor,
    optimum: Optimum,
    matching: Callable[[Tensor], Tensor],
    *,
    started: float,
) -> Reconstruction:
    """Clip the images to [0, 1] and take the matching loss at the result.

    Args:
        problem: What was solved.
        pixels: (N, C, H, W), not clipped.
        optimum: What the search ended with.
        matching: The matching loss of pixels (N, C, H, W), taken as the same in each epoch.
        started: `time.monotonic` at the start of the attack.

    Returns:
        The reconstruction, on the CPU.
    """
    images = pixels.detach().clamp(0.0, 1.0)
    with torch.no_grad():
        matching_loss = matching(images).item()
    return Reconstruction(
        images=images.cpu(),
        labels=problem.labels.cpu(),
        matching_loss=matching_loss,
        losses=optimum.losses,
        outcome=optimum.outcome,
        seconds=time.monotonic() - started,
        remarks=problem.remarks,
    )
