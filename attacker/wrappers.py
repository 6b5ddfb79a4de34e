"""Attacks made of attacks."""

import math
import time
from dataclasses import dataclass, replace

import torch

from attacker.attack import Attack, OnStep, Progress, Reconstruction, ignore_progress
from attacker.observation import Observation
from attacker.together import attack_together


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """Runs an attack several times and keeps the reconstruction of lowest matching loss; the truth plays no part.

    Attributes:
        attack: The attack; its randomness must come from the generator it is given.
        restarts: Number of runs, >= 1.
        side_by_side: Whether the runs go in lockstep, and as one batch where that is measured to be cheaper, see
            `attacker.together`; else one after the other, so that whoever ends it early has some that are finished.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, Sec. 5 (restarts).
    """

    attack: Attack
    restarts: int
    side_by_side: bool = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.restarts < 1:
            raise ValueError(f"restarts must be >= 1, got {self.restarts}")

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`. The time is that of all runs, the losses those of the best."""
        started = time.monotonic()
        # Each run draws from its own, so that it finds the same whichever way the runs are computed.
        seeds: list[int] = torch.randint(2**62, (self.restarts,), generator=generator).tolist()
        runs = attack_together(
            self.attack,
            [observation] * self.restarts,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            at_once=None if self.side_by_side else 1,
            on_step=self._counted(on_step),
        )
        best = min(runs, key=lambda run: run.matching_loss if math.isfinite(run.matching_loss) else math.inf)
        return replace(best, seconds=time.monotonic() - started)

    def _counted(self, on_step: OnStep) -> OnStep:
        """Count the steps of all runs."""
        done = 0

        def report(progress: Progress) -> None:
            nonlocal done
            done += 1
            on_step(replace(progress, step=done, num_steps=self.restarts * progress.num_steps))

        return report
