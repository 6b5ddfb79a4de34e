"""Deep Leakage from Gradients: images and soft labels together, squared L2, L-BFGS.

minimise over z and a   ||simulated(z, softmax(a)) - observed||^2 / ||observed||^2

The divisor is constant: it changes no minimum, and keeps the loss where L-BFGS works in single precision.
"""

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.distances import relative_squared_l2
from attacker.inversion_problem import InversionProblem, problem_with_labels
from attacker.lbfgs import LbfgsSearch, minimise_lbfgs
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.recipes.ranges import check_at_least_one, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.wrappers import BestOf


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepLeakage:
    """Matches the gradient by L-BFGS over images and labels at once; a granted label count is not used.

    Needs a model that is smooth in its input, such as `lenet`: with ReLUs the second derivatives that L-BFGS lives on
    vanish almost everywhere. Whether a start leads anywhere is a matter of luck, hence ``restarts``.

    Attributes:
        steps: Each of ``iterations_per_step`` iterations of L-BFGS.
        iterations_per_step: At most.
        history: Iterations whose curvature L-BFGS remembers.
        learning_rate: Where the line search starts.
        simulation: How the local steps are followed, see `attacker.local_update`.
        restarts: Runs, of which the lowest matching loss is kept.

    References:
        Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Algorithm 1 and Sec. 4.1.
    """

    steps: int = 300
    iterations_per_step: int = 20
    history: int = 100
    learning_rate: float = 1.0
    simulation: Simulation = "full"
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
        """Reconstruct; arguments as for `Attack`. The label of an image is the class of its largest logit."""
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        num_images, num_classes = observation.require_num_examples(), observation.dataset.num_classes
        problem = problem_with_labels(observation, torch.full((num_images, num_classes), 1.0 / num_classes))
        logits = torch.randn(num_images, num_classes, generator=generator)

        def matching(pixels: Tensor, logits: Tensor) -> Tensor:
            simulated = problem.simulate(pixels, self.simulation, labels=logits.softmax(dim=1))
            return relative_squared_l2(simulated, problem.observed)

        optimum = minimise_lbfgs(
            lambda variables: matching(*_unpack(problem, variables)),
            torch.cat([problem.noise(generator).flatten(1), logits.to(problem.mean)], dim=1),
            LbfgsSearch(
                steps=self.steps,
                iterations_per_step=self.iterations_per_step,
                history=self.history,
                learning_rate=self.learning_rate,
            ),
            on_step=on_step,
            to_pixels=lambda variables: _unpack(problem, variables)[0],
        )
        pixels, found = _unpack(problem, optimum.variables)
        labelled = replace(problem, labels=found.argmax(dim=1))
        return reconstruction(labelled, pixels, optimum, lambda images: matching(images, found), started=started)


def _unpack(problem: InversionProblem, variables: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels (N, C, H, W) and logits (N, K) from the variables (N, C H W + K)."""
    images, logits = variables.tensor_split([math.prod(problem.image_shape)], dim=1)
    return problem.to_pixels(images.unflatten(1, problem.image_shape)), logits
