"""Whether the local training can be followed in a few wide steps, told before an attack, without images.

    missed(s) = ||u(x) - s(x)||^2 / ||u(x)||^2        x smooth fields about the public mean

How wide a step the network's curvature bears has little to do with how well it is trained: after ten rounds of small
steps it bears none that is twenty times as wide, after ten rounds of wide steps any (docs/attacks.md). Fields say so
about as clearly as true images do.
"""

import torch
from torch import Tensor
from torch.nn import functional

from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from attacker.order_noise import layer_weighted_vector

_SEED = 0  # of its own: an attack's random numbers do not depend on whether somebody asked
_CELLS = 4  # in height and width, of which a field has seven on 28 pixels
# Five full-batch gradients for E = 10, m = 5 miss 0.05 to 0.11 for untrained networks of three clients, and 0.7 to 3.8
# after ten rounds; five draws of the fields. With twice the deviation some untrained networks are at the edge.
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
