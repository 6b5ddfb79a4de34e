"""The attacker who knows the clients' defenses: what becomes of a simulated update before it is compared.

    pruning, top_k    entries that arrive as zero say nothing: only the others are compared
    clipping          the simulated update is scaled down as the client scales its own

Defenses that act on the gradient of a step or of an example are not followed: their masks and norms are not seen.
Noise, quantisation and the sign are compared as they arrive.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fl_sim.parameters import Parameters
from fl_sim.records import Algorithm, DeclaredDefense

Adaptation: TypeAlias = Callable[[Parameters], dict[str, Tensor]]
"""A simulated mean gradient to what the defended client would send of it."""

_PRUNING = ("random_pruning", "magnitude_pruning", "top_k")


def adaptation(
    defenses: Sequence[DeclaredDefense], observed: Parameters, *, algorithm: Algorithm, unit: float
) -> Adaptation | None:
    """Return how the declared defenses are followed, or ``None`` where none of them can be.

    Args:
        defenses: The clients' chain, in its order.
        observed: The mean gradient that was received.
        algorithm: What clients send.
        unit: The length of an update whose mean gradient has length 1: eta U for FedAvg, 1 for FedSGD.
    """
    steps: list[Adaptation] = []
    for defense in defenses:
        if not _acts_on_what_is_sent(defense, algorithm):
            continue
        if defense.name in _PRUNING:
            steps.append(_kept_entries(observed))
        elif defense.name == "clipping":
            steps.append(_clipped(float(defense.options["clip_norm"]) / unit))
    if not steps:
        return None

    def follow(simulated: Parameters) -> dict[str, Tensor]:
        for step in steps:
            simulated = step(simulated)
        return dict(simulated)

    return follow


def _acts_on_what_is_sent(defense: DeclaredDefense, algorithm: Algorithm) -> bool:
    """Say whether a defense acts on the update, which is the gradient of the only step for FedSGD."""
    return defense.where == "update" or (defense.where == "step" and algorithm is Algorithm.FEDSGD)


def _kept_entries(observed: Parameters) -> Adaptation:
    kept: Mapping[str, Tensor] = {name: tensor != 0 for name, tensor in observed.items()}
    return lambda simulated: {name: tensor * kept[name] for name, tensor in simulated.items()}


def _clipped(norm: float) -> Adaptation:
    def clip(simulated: Parameters) -> dict[str, Tensor]:
        squares = torch.stack([tensor.square().sum() for tensor in simulated.values()]).sum()
        # Not the norm itself: its derivative at a zero update is infinite.
        factor = norm / squares.clamp_min(norm**2).sqrt()
        return {name: tensor * factor for name, tensor in simulated.items()}

    return clip
