"""Which gradients a simulation follows: one for each local step, or fewer that are held for several of them.

full            U gradients, each of one mini-batch
merged_2/5/10   one gradient for 2, 5 or 10 mini-batches in a row, held for their steps
fedsgd_epoch    E gradients, each of all images, held for the B_c steps of an epoch
fedsgd          1 gradient of all images at w_t, held for all U steps
a number k      k gradients of all images, which share the U steps evenly (Euler's method with k steps)

Several batches as one is the linear scaling rule of Goyal et al., Accurate, Large Minibatch SGD, 2017, Sec. 2.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

from torch import Tensor

from fl_sim.records import LocalTraining
from fl_sim.tables import Table

Simulation: TypeAlias = Literal["full", "merged_2", "merged_5", "merged_10", "fedsgd_epoch", "fedsgd"] | int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldStep:
    """One gradient of the simulation.

    Attributes:
        epoch: The local epoch, from 0, whose images it takes where there is a set for each.
        chosen: (n,), int64, or a slice: positions of its images.
        num_steps: Local steps for which it is held.
    """

    epoch: int
    chosen: Tensor | slice
    num_steps: int


def held_steps(
    simulation: Simulation, recipe: LocalTraining, num_images: int, order: Tensor | None
) -> tuple[HeldStep, ...]:
    """Return the gradients of a simulation, in their order.

    Args:
        simulation: A name of `SIMULATIONS`, or a number k >= 1 of full-batch gradients, at most U of them.
        recipe: E, m.
        num_images: N.
        order: (E, N), int64: epoch e visits the images ``order[e]``; ``None``: as they stand. Only ``full`` and
            ``merged_…`` depend on it.

    Raises:
        ValueError: If k is below 1.
    """
    if isinstance(simulation, int):
        return _euler(simulation, recipe, num_images)
    return SIMULATIONS[simulation](recipe, num_images, order)


def takes_shared_images(simulation: Simulation) -> bool:
    """Return whether one set of images serves all epochs, because gradients do not belong to single epochs."""
    return simulation == "fedsgd" or isinstance(simulation, int)


def _batches(recipe: LocalTraining, num_images: int, order: Tensor | None, *, merged: int = 1) -> tuple[HeldStep, ...]:
    size = recipe.batch_size or num_images
    taken = merged * size

    def step(epoch: int, start: int) -> HeldStep:
        end = min(start + taken, num_images)
        positions = slice(start, end)
        chosen = positions if order is None else order[epoch, positions]
        return HeldStep(epoch=epoch, chosen=chosen, num_steps=math.ceil((end - start) / size))

    return tuple(step(epoch, start) for epoch in range(recipe.epochs) for start in range(0, num_images, taken))


def _fedsgd_epoch(recipe: LocalTraining, num_images: int, order: Tensor | None) -> tuple[HeldStep, ...]:
    del order  # a full batch has none
    num_steps = recipe.batches_per_epoch(num_images)
    return tuple(HeldStep(epoch=epoch, chosen=slice(None), num_steps=num_steps) for epoch in range(recipe.epochs))


def _fedsgd(recipe: LocalTraining, num_images: int, order: Tensor | None) -> tuple[HeldStep, ...]:
    del order
    return _euler(1, recipe, num_images)


def _euler(num_gradients: int, recipe: LocalTraining, num_images: int) -> tuple[HeldStep, ...]:
    if num_gradients < 1:
        raise ValueError(f"simulation must hold at least 1 full-batch gradient, got {num_gradients}")
    # The U steps in k shares that differ by one at most; more gradients than steps make no sense.
    num_steps = recipe.steps(num_images)
    edges = [round(num_steps * part / num_gradients) for part in range(num_gradients + 1)]
    shares = [end - start for start, end in pairwise(edges)]
    return tuple(HeldStep(epoch=0, chosen=slice(None), num_steps=share) for share in shares if share)


SIMULATIONS: Table[Callable[[LocalTraining, int, Tensor | None], tuple[HeldStep, ...]]] = Table(
    "simulation",
    {
        "full": _batches,
        **{f"merged_{merged}": partial(_batches, merged=merged) for merged in (2, 5, 10)},
        "fedsgd_epoch": _fedsgd_epoch,
        "fedsgd": _fedsgd,
    },
)
