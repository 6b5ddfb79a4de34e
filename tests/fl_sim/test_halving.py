"""Average pooling by matrix products is average pooling."""

import pytest
import torch
from torch import nn

from fl_sim.models.halving import Halving


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 5, 7), (2, 2, 2, 3)])
def test_it_is_average_pooling(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Halving()(images), nn.AvgPool2d(2)(images), atol=1e-6)


def test_its_derivatives_are_right() -> None:
    images = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: Halving()(x).pow(3), images.requires_grad_())
