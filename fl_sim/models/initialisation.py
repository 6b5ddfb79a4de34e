"""Initial weights as a function of a generator only; the global random state is neither read nor changed.

lecun_normal   W ~ N(0, 1 / fan_in) cut at two standard deviations, b = 0     (flax's default)
uniform        W, b ~ U(-bound, bound)                                        (Deep Leakage from Gradients)
seeded_construction   PyTorch's own defaults, He-like uniform for layers, whatever the library does
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Standard deviation of a standard normal variable cut at -2 and 2.
_STD_OF_CUT_NORMAL = 0.87962566103423978


@contextmanager
def seeded_construction(generator: torch.Generator) -> Generator[None]:
    """Let modules that are built inside draw their default weights from a stream of their own.

    Args:
        generator: Seeds that stream with one draw. A CPU generator.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))  # also where nothing is allocated
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        yield


def lecun_normal(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all convolutions and linear layers anew, in place, and set their biases to zero.

    Args:
        model: The model.
        generator: The source of the weights.

    References:
        LeCun et al., Efficient BackProp, in Neural Networks: Tricks of the Trade, 1998, Sec. 4.6.
        Flax, https://flax.readthedocs.io, ``nn.Dense`` and ``nn.Conv``: the default ``kernel_init``.
    """
    for layer in _layers(model):
        fan_in = layer.weight[0].numel()
        std = math.sqrt(1 / fan_in) / _STD_OF_CUT_NORMAL
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def uniform(model: nn.Module, generator: torch.Generator, *, bound: float) -> None:
    """Draw weights and biases of all convolutions and linear layers from U(-bound, bound), in place.

    Args:
        model: The model.
        generator: The source of the weights.
        bound: Largest magnitude, > 0.
    """
    for layer in _layers(model):
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _layers(model: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module
