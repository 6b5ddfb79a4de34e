"""The matching term of an attack, as one function of the simulated update that attacks side by side can share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attacker.distances import Distance
from attacker.inversion_problem import InversionProblem
from attacker.joint_terms import JointTerm
from fl_sim.parameters import Parameters


def matching_term(problem: InversionProblem, distance: Distance, *, scale: float = 1.0) -> JointTerm:
    """Return the distance of simulated mean gradients, by name, from the observed one.

    Args:
        problem: Gives the observed one.
        distance: What is taken.
        scale: What it is multiplied by.
    """
    return JointTerm(
        function=_Scaled(distance), constants={"observed": problem.observed, "scale": problem.mean.new_tensor(scale)}
    )


@dataclass(frozen=True, slots=True)
class _Scaled:
    distance: Distance

    def __call__(self, simulated: Parameters, own: Mapping[str, Any]) -> Tensor:
        return own["scale"] * self.distance(simulated, own["observed"])
