"""Whether the local training can be followed in a few wide steps, told before an attack, without images.

    missed(s) = ||u(x) - s(x)||^2 / ||u(x)||^2        x smooth fields about the public mean

Training alone does not tell: of two networks after ten rounds the one trained in wider steps bore them, the other did
not (docs/attacks.md). Fields say so about as clearly as true images do (benchmarks/wide_steps.py).
"""

import torch
from torch import Tensor
from torch.nn import functional

from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from attacker.order_noise import layer_weighted_vector

_SEED = 0  # of its own: an attack's random numbers do not depend on whether somebody asked
_CELLS = 4  # in height and width, of which a field has seven on 28 pixels
# Between what five full-batch gradients miss at E = 10, m = 5 untrained and after ten rounds, 0.05 to 0.10 and 0.95 to
# 3.6 (benchmarks/results/wide_steps.md). Twice the deviation took some untrained networks to the edge.
_TIMES_STD = 1.5
_MOST_MISSED = 0.3


def bears(problem: InversionProblem, simulation: Simulation) -> bool:
    """Say whether a simulation follows the local training of pictures like the private ones, roughly."""
    return missed(problem, simulation) <= _MOST_MISSED


def missed(problem: InversionProblem, simulation: Simulation) -> float:
    """Return the share of the update's energy that a simulation misses for images that are smooth fields.

    Args:
        problem: Whose model, recipe and labels are followed; what was observed does not enter.
        simulation: Compared with one that follows every local step.
    """
    return missed_at(smooth_fields(problem), problem, simulation)


def missed_at(pixels: Tensor, problem: InversionProblem, simulation: Simulation) -> float:
    """Return the share of the update's energy that a simulation misses for images (N, C, H, W)."""
    with torch.no_grad():
        every, few = (layer_weighted_vector(problem.simulate(pixels, name)) for name in ("full", simulation))
        return ((every - few).square().sum() / every.square().sum().clamp_min(1e-30)).item()


def smooth_fields(problem: InversionProblem) -> Tensor:
    """Return pixels (N, C, H, W) in [0, 1], the same at every call: noise on a coarse grid, interpolated."""
    channels, height, width = problem.image_shape
    coarse = torch.randn(
        problem.num_images,
        channels,
        max(1, height // _CELLS),
        max(1, width // _CELLS),
        generator=torch.Generator().manual_seed(_SEED),
    )
    fields = functional.interpolate(coarse, size=(height, width), mode="bicubic")
    fields = (fields - fields.mean()) / fields.std()
    return (problem.mean + _TIMES_STD * problem.std * fields.to(problem.mean)).clamp(0.0, 1.0)
