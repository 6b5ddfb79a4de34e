"""What an attack is and what it returns.

An attack is a frozen dataclass that holds its hyper-parameters and is called with an `Observation`. It returns a
`Reconstruction`; a diverging optimisation is an `Outcome`, not an exception.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from attacker.observation import Observation
from fl_sim.errors import FlSimError


class DoesNotApplyError(FlSimError):
    """The attack or label recovery is not made for this model or this update; the message says what is."""


class StopAttackError(Exception):
    """Raised by ``on_step`` to end a search: it returns what it has, with `Outcome.STOPPED`.

    An attack of several searches begins those that remain, which each end after a step.
    """


class Outcome(StrEnum):
    """How an attack ended; the values are what a person reads."""

    FINISHED = "finished"
    STALLED = "stopped: the matching loss no longer fell"
    STOPPED = "stopped by whoever ran it; what it had found is returned"
    NON_FINITE = "stopped: the loss was not finite; the best images before that are returned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a running attack, for progress bars and live pictures.

    Attributes:
        step: Counted from 1.
        num_steps: Of the attack.
        loss: The matching loss before the step; on a GPU a tensor () that may not have been computed yet.
        images: Returns the images as they stand, (N, C, H, W), pixels that are not clipped; to be called inside of
            ``on_step`` only, since the optimiser goes on in the same memory. ``None`` where an attack has none to show.
    """

    step: int
    num_steps: int
    loss: float | Tensor
    images: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def matching_loss(self) -> float:
        """The matching loss before the step; who looks waits for the device, and the attack with them."""
        return float(self.loss)


OnStep = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The default of ``on_step``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What an attack claims to have seen. There is no truth in it.

    Attributes:
        images: (N, C, H, W), pixels in [0, 1].
        labels: (N,), the class attributed to each image.
        matching_loss: Distance between the simulated and the observed update at ``images``; comparable between runs of
            the same attack on the same observation only.
        losses: (T,), the matching loss of each optimisation step; (0,) for closed-form attacks.
        outcome: How it ended.
        seconds: Wall time.
        remarks: What a person should know about how it was found, for instance which E and m fitted best.
    """

    images: Tensor
    labels: Tensor
    matching_loss: float
    losses: Tensor
    outcome: Outcome
    seconds: float
    remarks: tuple[str, ...] = ()


class Attack(Protocol):
    """Any gradient-inversion attack."""

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct the private batch.

        Args:
            observation: All that the threat model lets the attack see.
            generator: The only source of randomness; a CPU generator.
            on_step: Called after each optimisation step; may raise `StopAttackError`.

        Raises:
            NotGrantedError: If the attack needs knowledge that is not granted.
        """
        ...
