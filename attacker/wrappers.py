"""Attacks made of attacks."""

import math
import time
from dataclasses import dataclass, replace

import torch

from attacker.attack import Attack, OnStep, Progress, Reconstruction, ignore_progress
from attacker.observation import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """Runs an attack several times and keeps the reconstruction of lowest matching loss; the truth plays no part.

    Attributes:
        attack: The attack; its randomness must come from the generator it is given.
        restarts: Number of runs, >= 1.

    References:
        Geiping et al., Inverting Gradients, NeurIPS 2020, Sec. 5 (restarts).
    """

    attack: Attack
    restarts: int

    def __post_init__(self) -> None:
        """Check the range."""
        if self.restarts < 1:
            raise ValueError(f"restarts must be >= 1, got {self.restarts}")

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`. The time is that of all runs, the losses those of the best."""
        started = time.monotonic()
        runs = [
            self.attack(observation, generator=generator, on_step=self._report(run, on_step))
            for run in range(self.restarts)
        ]
        best = min(runs, key=lambda run: run.matching_loss if math.isfinite(run.matching_loss) else math.inf)
        return replace(best, seconds=time.monotonic() - started)

    def _report(self, run: int, on_step: OnStep) -> OnStep:
        """Count the steps through all runs."""

        def report(progress: Progress) -> None:
            done = run * progress.num_steps + progress.step
            on_step(replace(progress, step=done, num_steps=self.restarts * progress.num_steps))

        return report
