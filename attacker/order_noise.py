"""What the unknown order of the local batches does to an update: sampled at the images so far, then discounted.

    u(x, pi)  the update of images x visited in the order pi,      c(x)  a cheap simulation without an order
    r = observed - c(x) - mean over pi of (u(x', pi) - c(x'))      x' the images so far
    distance  ||r||^2 - sum_k  v_k / (v_k + f) (d_k . r)^2         v_k, d_k variances and directions of u(x', pi)

The first correction lets a cheap simulation stand for the faithful one (defect correction); the second is a Mahalanobis
distance with the covariance of the sampled updates on top of a floor f of isotropic noise: entries that any other order
would have changed say little about the images. On the FEMNIST network with E = 10, m = 5, N_c = 50 the distance at the
true images falls from about a tenth of the update's energy to a hundredth (benchmarks/order_noise.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.distances import layer_depths
from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from fl_sim.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderNoise:
    """How a residual is to be read; residuals are flat, as `layer_weighted_vector` makes them.

    Attributes:
        offset: (P,), by how much the faithful simulation exceeds the cheap one, in the mean over orders.
        directions: (R, P), orthonormal; in these the order moves the update.
        discounts: (R,), in [0, 1): the share of the energy that does not count.
    """

    offset: Tensor
    directions: Tensor
    discounts: Tensor

    def squared_distance(self, residual: Tensor) -> Tensor:
        """Return the squared distance, shape (), of a residual observed - simulated, shape (P,)."""
        remaining = residual - self.offset
        return remaining.square().sum() - (self.discounts * (self.directions @ remaining).square()).sum()


def no_order_noise(like: Tensor) -> OrderNoise:
    """Return what leaves the squared L2 norm of residuals shaped as ``like``, (P,), as it is."""
    return OrderNoise(
        offset=torch.zeros_like(like), directions=like.new_zeros(0, len(like)), discounts=like.new_zeros(0)
    )


def sample_order_noise(
    problem: InversionProblem,
    pixels: Tensor,
    simulation: Simulation,
    *,
    num_orders: int,
    floor: float,
    generator: torch.Generator,
) -> OrderNoise:
    """Follow the local training of images in several random orders; no graph is kept.

    Where the order cannot matter (one batch an epoch) or the threat model grants it, only the offset is found.

    Args:
        problem: What is solved.
        pixels: (N, C, H, W), the images so far.
        simulation: The cheap one.
        num_orders: K, >= 1; K - 1 directions are found.
        floor: f, the variance of a direction that no order moves, as a share of the observed update's energy.
        generator: Draws the orders.
    """
    is_known = problem.order is not None or problem.num_batches == len(problem.members)
    with torch.no_grad():
        cheap = layer_weighted_vector(problem.simulate(pixels, simulation))
        sampled = torch.stack(
            [
                layer_weighted_vector(
                    problem.simulate(pixels, "full", orders=None if is_known else random_orders(problem, generator))
                )
                for _ in range(1 if is_known else num_orders)
            ]
        )
        mean = sampled.mean(dim=0)
        if len(sampled) == 1:
            return replace(no_order_noise(mean), offset=mean - cheap)
        _, values, directions = torch.linalg.svd(sampled - mean, full_matrices=False)
        # K deviations from their own mean have K - 1 directions.
        variances = values[:-1].square() / (len(sampled) - 1)
        isotropic = floor * layer_weighted_vector(problem.observed).square().sum()
        return OrderNoise(
            offset=mean - cheap, directions=directions[:-1], discounts=variances / (variances + isotropic)
        )


def layer_weighted_vector(gradients: Parameters) -> Tensor:
    """Return all entries as one vector (P,), whose squared norm is that of `layer_weighted_l2`."""
    depths = layer_depths(gradients)
    return torch.cat([math.exp(-0.5 * depths[name]) * tensor.flatten() for name, tensor in gradients.items()])


def random_orders(problem: InversionProblem, generator: torch.Generator) -> Sequence[Tensor]:
    """Draw, for each client of a problem, an order (E, N_c) of visits."""
    device = problem.labels.device
    return [
        torch.stack([torch.randperm(size, generator=generator) for _ in range(problem.recipe.epochs)]).to(device)
        for size in problem.members
    ]
