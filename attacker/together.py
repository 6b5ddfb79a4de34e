"""One attack on several observations, or several times on one, side by side in one process.

Each attack runs as if it were alone, in lockstep with the others; the simulations of all are computed as one batch
where that is cheaper, see `attacker.company`. What comes out equals one by one to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from attacker.attack import Attack, OnStep, Reconstruction, ignore_progress
from attacker.company import Company, in_company
from attacker.joint_simulation import JointSimulation
from attacker.lockstep import Ask, run_in_lockstep
from attacker.observation import Observation
from attacker.placement import device_of

# On a CPU 8 have most of the gain where there is one, and 32 clients of a larger network were slower than one by one
# (benchmarks/results/throughput.md). A GPU has room for more.
_ON_CPU = 8
_ON_GPU = 32


def attack_together(
    attack: Attack,
    observations: Sequence[Observation],
    *,
    generators: Sequence[torch.Generator],
    at_once: int | None = None,
    on_step: OnStep = ignore_progress,
) -> list[Reconstruction]:
    """Attack each observation, and say in the remarks how that was computed.

    Args:
        attack: The attack.
        observations: Of one architecture and data set, on one device; the same one several times makes restarts.
        generators: Of each attack.
        at_once: Attacks side by side, >= 1; ``None``: 8 on a CPU, 32 on a GPU.
        on_step: Called after each step of each of them; a `StopAttackError` ends the one whose step it is told.

    Returns:
        The reconstructions; the time of each is that until it was there, the others at its side included.

    Raises:
        ValueError: If the observations are not of one architecture and data set, or the numbers do not fit.
    """
    if len(generators) != len(observations):
        raise ValueError(f"expected {len(observations)} generators, one for each observation, got {len(generators)}")
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once must be >= 1, got {at_once}")
    if len({(str(own.model), str(own.dataset), str(device_of(own))) for own in observations}) > 1:
        raise ValueError("observations must be of one architecture and data set and on one device, got several")
    found: list[Reconstruction] = []
    if observations:
        size = at_once or (_ON_GPU if device_of(observations[0]).type == "cuda" else _ON_CPU)
        for start in range(0, len(observations), size):
            part = slice(start, start + size)
            found += _side_by_side(attack, observations[part], generators[part], on_step)
    return found


def _side_by_side(
    attack: Attack, observations: Sequence[Observation], generators: Sequence[torch.Generator], on_step: OnStep
) -> list[Reconstruction]:
    joint = JointSimulation(on_step=on_step)

    def run(observation: Observation, generator: torch.Generator) -> Callable[[Ask[Any, Any]], Reconstruction]:
        def in_lockstep(ask: Ask[Any, Any]) -> Reconstruction:
            own = Company(ask, joint)
            with in_company(own):
                return attack(observation, generator=generator, on_step=own.on_step)

        return in_lockstep

    functions = [run(observation, generator) for observation, generator in zip(observations, generators, strict=True)]
    found = run_in_lockstep(functions, joint.answer)
    return [replace(one, remarks=(*one.remarks, *joint.remarks)) for one in found]
