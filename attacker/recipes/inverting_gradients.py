"""Inverting Gradients: cosine distance, total variation, and Adam on the sign of the gradient.

minimise over z in the pixel box   1 - cos(simulated, observed) + alpha TV(z)
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.company import evaluate
from attacker.gradient_matching import Objective, Search, minimise
from attacker.inversion_problem import inversion_problem
from attacker.joint_terms import Constants, JointTerm
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.priors.total_variation import total_variation
from attacker.recipes.matching_term import matching_term
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.schedules import Constant, StepDecay
from attacker.wrappers import BestOf


@dataclass(frozen=True, slots=True, kw_only=True)
class InvertingGradients:
    """Cosine matching with total variation; for FedAvg one set of images goes through all local steps.

    Attributes:
        steps: Adam steps; the rate is divided by ten at 3/8, 5/8 and 7/8 of them.
        learning_rate: Of Adam at step 0, in normalised units.
        total_variation: alpha, on normalised images.
        signed: Gives Adam the sign of the gradient only, as the authors' command line does.
        box: Projects onto pixels in [0, 1] after each step.
        simulation: How the local steps are followed, see `attacker.local_update`.
        keep: The last iterate or the best one by matching loss.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs, of which the lowest matching loss is kept.
        images_at_once: Bounds the memory for many averaged images, see `simulate_local_update`; not with BatchNorm.

    References:
        Geiping et al., Inverting Gradients - How easy is it to break privacy in federated learning?, NeurIPS 2020,
        Eq. 4, and its released code.
    """

    steps: int = 4800
    learning_rate: float = 0.1
    total_variation: float = 1e-4
    signed: bool = True
    box: bool = True
    simulation: Simulation = "full"
    keep: Literal["last", "best"] = "last"
    label_recovery: str = "automatic"
    restarts: int = 1
    images_at_once: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(steps=self.steps, restarts=self.restarts)
        check_at_least_one(**({} if self.images_at_once is None else {"images_at_once": self.images_at_once}))
        check_positive(learning_rate=self.learning_rate)
        check_not_negative(total_variation=self.total_variation)

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`."""
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)
        distance = matching_term(problem, problem.directional_distance)
        smoothness = JointTerm(function=_smoothness, constants={})

        def matching(pixels: Tensor) -> Tensor:
            return problem.matching(pixels, self.simulation, distance, images_at_once=self.images_at_once)

        optimum = minimise(
            Objective(
                matching=lambda variables: matching(problem.to_pixels(variables)),
                priors=((self.total_variation, lambda variables: evaluate(smoothness, variables)),),
            ),
            problem.noise(generator),
            Search(
                steps=self.steps,
                learning_rate=StepDecay(start=self.learning_rate, num_steps=self.steps),
                matching_factor=Constant(problem.trust),
                signed=self.signed,
                box=(problem.to_normalised(0.0), problem.to_normalised(1.0)) if self.box else None,
                keep=self.keep,
            ),
            on_step=on_step,
            to_pixels=problem.to_pixels,
        )
        return reconstruction(problem, problem.to_pixels(optimum.variables), optimum, matching, started=started)


def _smoothness(variables: Tensor, own: Constants) -> Tensor:
    del own  # the same for all
    return total_variation(variables)
