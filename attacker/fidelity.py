"""How faithfully a client's training is followed: cheaply while the images get better by it, more faithfully then."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from attacker.local_steps import Simulation


class Fidelity(Protocol):
    """What decides, while an attack runs, which simulation it takes."""

    @property
    def simulation(self) -> Simulation:
        """The one to take now."""
        ...

    @property
    def noise(self) -> float:
        """What is known of the share of an update that the unknown order makes; 0 where nothing is."""
        ...

    def look(self, pixels: Tensor) -> None:
        """Take notice of the images so far, (N, C, H, W), before they are simulated."""
        ...

    def judge(self, pixels: Tensor) -> None:
        """Decide by the images so far, (N, C, H, W), for the part that begins."""
        ...

    def tell(self, loss: Tensor) -> None:
        """Take notice of a matching loss, shape (), as simulated now."""
        ...


class FidelityLadder:
    """Simulations from cheap to faithful; climbs to the next when the matching loss has stopped falling.

    A cheap simulation is wrong by some share of the update (benchmarks/order_noise.py). While the images are wrong by
    more, it points the right way; where the loss stalls, its own error may be what is left.
    """

    def __init__(self, simulations: Sequence[Simulation], *, patience: int, least_gain: float) -> None:
        """Start at the first.

        Args:
            simulations: At least one, see `attacker.local_steps`.
            patience: Losses within which it must have fallen, >= 1.
            least_gain: By how much, as a share.
        """
        self._simulations = tuple(simulations)
        self._least_gain = least_gain
        self._rung = 0
        self._lowest: deque[float] = deque(maxlen=patience + 1)

    @property
    def simulation(self) -> Simulation:
        """The one to take now."""
        return self._simulations[self._rung]

    @property
    def noise(self) -> float:
        """Nothing is known."""
        return 0.0

    def look(self, pixels: Tensor) -> None:
        """Images are not looked at."""

    def judge(self, pixels: Tensor) -> None:
        """Nor here."""

    def tell(self, loss: Tensor) -> None:
        """Take notice of a matching loss, as simulated now; climbs if that is due."""
        if self._rung + 1 == len(self._simulations):
            return  # nothing to decide, and to look at the loss is to wait for the device
        self._lowest.append(min((loss.item(), *self._lowest)))
        is_full = len(self._lowest) == self._lowest.maxlen
        if not is_full or self._lowest[-1] < (1 - self._least_gain) * self._lowest[0]:
            return
        self._rung += 1
        self._lowest.clear()  # losses of different simulations do not compare
