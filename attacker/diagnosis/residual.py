"""How far one update is from another, as a share of the observed one's energy.

residual(S, O) = sum ||S - O||^2 / sum ||O||^2,       over the tensors that O names
"""

import math

import torch

from fl_sim.parameters import Parameters


def inner(first: Parameters, second: Parameters) -> float:
    """Return the inner product over the tensors that the first one names."""
    return sum(float(torch.sum(tensor * second[name])) for name, tensor in first.items())


def energy(parameters: Parameters) -> float:
    """Return the squared Euclidean norm over all tensors together."""
    return inner(parameters, parameters)


def difference(observed: Parameters, simulated: Parameters, factor: float = 1.0) -> dict[str, torch.Tensor]:
    """Return ``observed - factor * simulated`` over the observed tensors."""
    return {name: tensor - factor * simulated[name] for name, tensor in observed.items()}


def relative_residual(simulated: Parameters, observed: Parameters) -> float:
    """Return the energy of the difference as a share of the observed energy, >= 0; 1 for a simulated update of zero.

    Infinite for a simulation that diverged. An observed update of zero has no energy to compare with: the simulated
    one's takes its place.

    Args:
        simulated: Names the observed tensors at least.
        observed: What was received.
    """
    left = energy(difference(observed, simulated))
    return left / (energy(observed) or left or 1.0) if math.isfinite(left) else math.inf


def tensor_residuals(simulated: Parameters, observed: Parameters) -> dict[str, float]:
    """Return `relative_residual` of each observed tensor by itself."""
    return {name: relative_residual({name: simulated[name]}, {name: tensor}) for name, tensor in observed.items()}


def least_squares_factor(simulated: Parameters, observed: Parameters) -> float:
    """Return the factor of the simulated update that comes closest to the observed one; 0 if it is zero."""
    squares = sum(float(simulated[name].square().sum()) for name in observed)
    return inner(observed, simulated) / squares if squares else 0.0
