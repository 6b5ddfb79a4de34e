"""Contrast is raised to the bounds of the pixels, and never lowered."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacker.contrast import full_contrast

MEAN = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)


def pictures(num: int = 3, seed: int = 0) -> torch.Tensor:
    """Return pictures whose values go from 0 to 1."""
    drawn = torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, :, 0, 0], drawn[:, :, 0, 1] = 0.0, 1.0
    return drawn


@given(lost=st.floats(0.1, 1.0), seed=st.integers(0, 1000))
def test_lost_contrast_comes_back(lost: float, seed: int) -> None:
    images = pictures(seed=seed)
    assert torch.allclose(full_contrast(MEAN + lost * (images - MEAN), MEAN, share=0.0), images)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_stated_share_lies_beyond(share: float) -> None:
    found = full_contrast(MEAN + 0.2 * (pictures() - MEAN), MEAN, share=share)
    beyond = ((found < -1e-9) | (found > 1 + 1e-9)).double().mean(dim=(1, 2, 3))
    assert beyond.max() <= share
    assert beyond.min() >= share - 0.06  # values at the bound come in groups of six


def test_no_contrast_is_lowered_and_none_made() -> None:
    loud = MEAN + 3 * (pictures() - MEAN)
    assert torch.equal(full_contrast(loud, MEAN, share=0.0), loud)
    flat = MEAN.expand(2, 3, 8, 8)
    assert torch.equal(full_contrast(flat, MEAN, share=0.01), flat)
