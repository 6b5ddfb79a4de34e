"""Improved Deep Leakage from Gradients: the label is read off first, and L-BFGS searches for the image alone.

minimise over z   ||simulated(z, label) - observed||^2 / ||observed||^2

The divisor is constant, as in `attacker.recipes.dlg`.
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.distances import relative_squared_l2
from attacker.inversion_problem import inversion_problem
from attacker.lbfgs import LbfgsSearch, minimise_lbfgs
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.recipes.ranges import check_at_least_one, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.wrappers import BestOf


@dataclass(frozen=True, slots=True, kw_only=True)
class ImprovedDeepLeakage:
    """Deep leakage of one image whose label is known from the sign of the last layer's gradient.

    Attributes:
        steps: Each of ``iterations_per_step`` iterations of L-BFGS.
        iterations_per_step: At most.
        history: Iterations whose curvature L-BFGS remembers.
        learning_rate: Where the line search starts.
        simulation: How the local steps are followed, see `attacker.local_update`.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts. The paper's
            is for one image only; with another one the attack takes more.
        restarts: Runs, of which the lowest matching loss is kept.

    References:
        Zhao et al., iDLG: Improved Deep Leakage from Gradients, arXiv:2001.02610, 2020, Algorithm 1.
    """

    steps: int = 300
    iterations_per_step: int = 20
    history: int = 100
    learning_rate: float = 1.0
    simulation: Simulation = "full"
    label_recovery: str = "idlg"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(
            steps=self.steps,
            iterations_per_step=self.iterations_per_step,
            history=self.history,
            restarts=self.restarts,
        )
        check_positive(learning_rate=self.learning_rate)

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`.

        Raises:
            DoesNotApplyError: If the label recovery does not apply, the paper's for instance to more than one image.
        """
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)

        def matching(pixels: Tensor) -> Tensor:
            return relative_squared_l2(problem.simulate(pixels, self.simulation), problem.observed)

        optimum = minimise_lbfgs(
            lambda variables: matching(problem.to_pixels(variables)),
            problem.noise(generator),
            LbfgsSearch(
                steps=self.steps,
                iterations_per_step=self.iterations_per_step,
                history=self.history,
                learning_rate=self.learning_rate,
            ),
            on_step=on_step,
            to_pixels=problem.to_pixels,
        )
        return reconstruction(problem, problem.to_pixels(optimum.variables), optimum, matching, started=started)
