"""Which simulation is faithful enough, told from the images so far, without the truth.

    missed(s) = ||u(x, pi) - s(x)||^2 / ||observed||^2        noise = ||u(x, pi) - u(x, pi')||^2 / (2 ||observed||^2)

u follows every local step in a random order, s is cheaper. How wide a step the network's curvature bears depends on the
network and on what the images show: five full-batch gradients for a hundred local steps miss a tenth of the update for
an untrained network, and thirty times all of it after ten rounds of training (docs/attacks.md).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from attacker.order_noise import layer_weighted_vector, random_orders
from fl_sim.records import LocalTraining

_MERGED: tuple[tuple[int, Simulation], ...] = ((10, "merged_10"), (5, "merged_5"), (2, "merged_2"))

# An epoch of merged batches costs one gradient of each image, however many are merged; only with fewer than ten images
# at a time do these become dear.
_IMAGES_AT_A_TIME = 10

# With 0.3 a tuning client of a trained network was lost (docs/attacks.md).
_MOST_MISSED = 0.15

# Two orders differ by twice the noise; a fifth above that is as good as can be.
_TIMES_NOISE = 2.4

_RISEN = 1.5


def candidates_for(recipe: LocalTraining) -> tuple[Simulation, ...]:
    """Return simulations from cheap to faithful: five full-batch gradients, batches of ten images, every local step."""
    size = recipe.batch_size
    fitting: list[Simulation] = [
        name for number, name in _MERGED if size is not None and number * size <= _IMAGES_AT_A_TIME
    ]
    return (5, *fitting[:1], "full")


class FaithfulSimulation:
    """Takes the cheapest simulation that misses little at the images so far; never goes back to a cheaper one.

    Attributes:
        noise: Share of the update's energy by which one random order differs from the mean over orders, as seen last; 0
            before.
    """

    def __init__(
        self,
        problem: InversionProblem,
        generator: torch.Generator,
        *,
        candidates: Sequence[Simulation] | None = None,
    ) -> None:
        """Start with the cheapest.

        Args:
            problem: What is solved.
            generator: Draws the orders.
            candidates: From cheap to faithful, at least one; ``None`` takes `candidates_for` the recipe.
        """
        self.noise = 0.0
        self._problem = problem
        self._generator = generator
        self._candidates = candidates_for(problem.recipe) if candidates is None else tuple(candidates)
        self._rung = 0
        self._num_looks = 0
        self._lowest_loss = math.inf
        self._is_due = False

    @property
    def simulation(self) -> Simulation:
        """The one to take now."""
        return self._candidates[self._rung]

    def tell(self, loss: Tensor) -> None:
        """Have the next call judge where the loss has risen by half: a simulation that no longer follows does that."""
        seen = loss.item()
        self._lowest_loss = min(seen, self._lowest_loss)
        self._is_due = not seen <= _RISEN * self._lowest_loss

    def look(self, pixels: Tensor) -> None:
        """Judge anew where a loss asks for it, and at the 2nd, 4th, 8th, ... call: images change ever more slowly."""
        self._num_looks += 1
        if self._is_due or (self._num_looks > 1 and self._num_looks.bit_count() == 1):
            self.judge(pixels)

    def judge(self, pixels: Tensor) -> None:
        """Measure the noise at pixels (N, C, H, W), and climb until little enough is missed."""
        # Losses of different simulations do not compare, and a rise that was looked into is not looked into again.
        self._lowest_loss, self._is_due = math.inf, False
        energy = layer_weighted_vector(self._problem.observed).square().sum()
        with torch.no_grad():
            shown = pixels.detach().clamp(0.0, 1.0)
            one, other = (self._simulated(shown, "full") for _ in range(2))
            between = ((one - other).square().sum() / energy).item()
            self.noise = between / 2
            most = max(_MOST_MISSED, _TIMES_NOISE * self.noise)
            while self._rung + 1 < len(self._candidates):
                missed = ((one - self._simulated(shown, self.simulation)).square().sum() / energy).item()
                if missed <= most:
                    break
                self._rung += 1

    def _simulated(self, pixels: Tensor, simulation: Simulation) -> Tensor:
        problem = self._problem
        orders = None if problem.order is not None else random_orders(problem, self._generator)
        return layer_weighted_vector(problem.simulate(pixels, simulation, orders=orders))
