"""Assignment of images, and the average over epochs whose order is unknown."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import pictures

from attacker.matching import UNMATCHED, match, match_and_average


@settings(deadline=None)
@given(num_images=st.integers(1, 8), seed=st.integers(0, 1000))
def test_matching_undoes_any_permutation(num_images: int, seed: int) -> None:
    images = pictures(num_images, seed=seed)
    permutation = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(images[permutation][match(images, images[permutation])], images)


def test_references_without_an_image_are_unmatched() -> None:
    images = pictures(3)
    assert match(images, images[1:2]).tolist() == [UNMATCHED, 0, UNMATCHED]


@settings(deadline=None)
@given(epochs=st.integers(1, 4), num_images=st.integers(1, 6), seed=st.integers(0, 1000))
def test_averaging_undoes_the_order_of_each_epoch(epochs: int, num_images: int, seed: int) -> None:
    images = pictures(num_images, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    later = [images[torch.randperm(num_images, generator=generator)] for _ in range(epochs - 1)]
    torch.testing.assert_close(match_and_average(torch.stack([images, *later])), images)


def test_averaging_reduces_noise_and_keeps_values_outside_the_box() -> None:
    images = pictures(5) - 0.5
    noise = 0.05 * torch.randn(16, *images.shape, generator=torch.Generator().manual_seed(0))
    average = match_and_average((images + noise).flip(1))
    assert (average - images.flip(0)).square().mean() < 0.05**2 / 4
    assert average.min() < 0
