"""The network, as a function, and its trainable tensors as a list of arrays."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Arrays = Sequence[npt.NDArray[np.float32]]


def build_network(width: int = 24) -> nn.Sequential:
    """A multi-layer perceptron with BatchNorm, whose statistics stay at the clients."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))


def get_weights(network: nn.Module) -> list[npt.NDArray[np.float32]]:
    """Return the trainable tensors."""
    return [parameter.detach().numpy() for parameter in network.parameters()]


def set_weights(network: nn.Module, arrays: Arrays) -> None:
    """Put them back."""
    with torch.no_grad():
        for parameter, array in zip(network.parameters(), arrays, strict=True):
            parameter.copy_(torch.tensor(array))
