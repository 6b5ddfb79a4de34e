"""Priors on images: by hand, zero where they must be, invariant where they must be, and their gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacker.batch_norm import LayerStatistics
from attacker.priors import PRIORS
from attacker.priors.batch_norm_statistics import batch_norm_statistics
from attacker.priors.epoch_order import NUM_FILTERS, epoch_order, random_filters
from attacker.priors.feature_span import feature_span, update_span
from attacker.priors.feature_volume import feature_volume, own_shares, typical_share
from attacker.priors.group_consistency import group_consistency
from attacker.priors.l2_norm import l2_norm
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from attacker.priors.total_variation import total_variation


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(value=st.floats(-5, 5))
def test_constant_images_do_not_vary(value: float) -> None:
    images = torch.full((2, 3, 4, 5), value)
    assert total_variation(images).item() == 0
    assert quadratic_variation(images).item() == 0


def test_variations_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0], [0.0, 3.0]]).reshape(1, 1, 2, 2)
    assert total_variation(image).item() == pytest.approx((0 + 2) / 2 + (1 + 3) / 2)
    assert quadratic_variation(image).item() == pytest.approx(2 * (0 + 4) + 2 * (1 + 9))  # wraps around: each twice
    assert quadratic_variation(torch.cat([image, torch.zeros_like(image)])).item() == pytest.approx(14)


def test_an_image_of_one_pixel_does_not_vary() -> None:
    assert total_variation(torch.rand(2, 1, 1, 1)).item() == 0


def test_pixel_box_by_hand() -> None:
    assert pixel_box(torch.rand(3, 1, 4, 4)).item() == 0
    outside = torch.tensor([[-0.5, 0.5], [1.0, 2.0]]).reshape(1, 1, 2, 2)
    assert pixel_box(torch.cat([outside, torch.zeros_like(outside)])).item() == pytest.approx((0.25 + 1.0) / 2)


@given(seed=st.integers(0, 100), aggregate=st.sampled_from(["mean", "max"]), norm=st.sampled_from(["l1", "l2"]))
def test_epoch_order_is_blind_to_the_order_within_an_epoch(seed: int, aggregate, norm) -> None:
    images = noise(1, 5, 1, 4, 4, seed=seed).expand(3, -1, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([epoch[torch.randperm(5, generator=generator)] for epoch in images])
    filters = random_filters(1, generator).double()
    for kernel in (None, filters):
        same = epoch_order(shuffled, aggregate=aggregate, norm=norm, filters=kernel)
        assert same.item() == pytest.approx(0, abs=1e-12)
        assert epoch_order(shuffled + noise(3, 5, 1, 4, 4), aggregate=aggregate, norm=norm, filters=kernel).item() > 0


def test_epoch_order_of_means_is_twice_their_variance() -> None:
    images = noise(4, 5, 2, 3, 3)
    expected = 2 * images.mean(dim=1).var(dim=0, correction=0).mean()
    assert epoch_order(images, aggregate="mean", norm="l2").item() == pytest.approx(expected.item())


def test_random_filters_preserve_the_variance_and_depend_on_the_generator_only() -> None:
    filters = random_filters(3, torch.Generator().manual_seed(0))
    assert filters.shape == (NUM_FILTERS, 3, 3, 3)
    assert filters.square().sum(dim=(1, 2, 3)).mean().item() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(filters, random_filters(3, torch.Generator().manual_seed(0)))


def test_features_of_the_batch_lie_in_the_span_and_others_do_not() -> None:
    features, errors = noise(5, 40), noise(5, 20, seed=1)
    basis = update_span(errors.T @ features, rank=5)
    assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert feature_span(features, basis=basis).item() == pytest.approx(0, abs=1e-12)
    assert feature_span(noise(5, 40, seed=2), basis=basis).item() == pytest.approx(1 - 5 / 40, abs=0.1)
    assert feature_span(torch.zeros(2, 40).double(), basis=basis).item() == 0


def test_an_images_own_share_is_what_the_others_do_not_explain() -> None:
    features = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    assert own_shares(features).tolist() == pytest.approx([0.64, 0.64, 1.0])
    assert torch.equal(own_shares(features), own_shares(features.flip(0)).flip(0))


@given(seed=st.integers(0, 50), scale=st.floats(0.1, 10.0))
def test_copies_and_mixtures_have_no_volume_and_independent_features_do(seed: int, scale: float) -> None:
    features = scale * noise(6, 60, seed=seed)
    floor = 0.25 * typical_share(features)
    assert feature_volume(features, floor=floor).item() == 0
    for extra in (features[2] + 1e-3 * noise(60, seed=77), 0.3 * features[1] + 2.0 * features[4]):
        spoilt = torch.cat([features, extra.unsqueeze(0)])
        assert feature_volume(spoilt, floor=floor).item() > 0
        assert own_shares(spoilt).min() < 1e-3 * typical_share(features)


def test_a_single_image_has_no_others() -> None:
    assert own_shares(noise(1, 5)).tolist() == pytest.approx([1.0])
    assert feature_volume(noise(1, 5), floor=0.9).item() == 0


def test_volume_pushes_copies_apart() -> None:
    features = noise(4, 30)
    features[3] = features[0] + 0.01 * noise(30, seed=5)
    floor = 0.25 * typical_share(features)
    (gradient,) = torch.autograd.grad(feature_volume(features.requires_grad_(), floor=floor), features)
    apart = (features[3] - features[0]).detach()
    assert (-gradient[3] @ apart).item() > 0 > (-gradient[0] @ apart).item()
    assert gradient[1].norm() < 1e-3 * gradient[3].norm()
    with pytest.raises(ValueError, match="rank must be >= 1, got 0"):
        update_span(features, rank=0)


def test_euclidean_norms_are_means_over_images() -> None:
    image = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).reshape(1, 1, 2, 2)
    images = torch.cat([image, torch.zeros_like(image)])
    assert l2_norm(images).item() == pytest.approx(5 / 2)
    assert group_consistency(images, consensus=-images).item() == pytest.approx(10 / 2)
    assert group_consistency(images, consensus=images.clone()).item() == 0
    with pytest.raises(ValueError, match=r"consensus must have the images' shape \(2, 1, 2, 2\), got \(1, 1, 2, 2\)"):
        group_consistency(images, consensus=image)


def test_batch_norm_statistics_by_hand() -> None:
    own = {"a": LayerStatistics(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0]))}
    target = {"a": LayerStatistics(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]))}
    assert batch_norm_statistics(own, target=target).item() == pytest.approx(5 + 2)
    assert batch_norm_statistics(own, target=own).item() == 0
    with pytest.raises(ValueError, match="tensor names differ"):
        batch_norm_statistics(own, target={"b": target["a"]})


def statistics(images: Tensor) -> LayerStatistics:
    return LayerStatistics(images.flatten(1).mean(dim=1), images.flatten(1).var(dim=1))


BASIS = update_span(noise(6, 16, seed=3), rank=4)
ON_IMAGES = {
    "total_variation": total_variation,
    "quadratic_variation": quadratic_variation,
    "pixel_box": pixel_box,
    "epoch_order": epoch_order,
    "epoch_order max l1": lambda images: epoch_order(images, aggregate="max", norm="l1"),
    "epoch_order filters": lambda images: epoch_order(
        images, filters=random_filters(1, torch.Generator().manual_seed(0)).double()
    ),
    "feature_span": lambda images: feature_span(images.reshape(-1, 16), basis=BASIS),
    "feature_volume": lambda images: feature_volume(images.reshape(-1, 16), floor=1.0),
    "l2_norm": l2_norm,
    "group_consistency": lambda images: group_consistency(images, consensus=noise(2, 3, 1, 4, 4, seed=5)),
    "batch_norm_statistics": lambda images: batch_norm_statistics(
        {"a": statistics(images), "b": statistics(images.square())},
        target={name: statistics(noise(2, 48, seed=6)) for name in ("a", "b")},
    ),
}


@pytest.mark.parametrize("name", ON_IMAGES)
def test_gradients(name: str) -> None:
    assert torch.autograd.gradcheck(ON_IMAGES[name], noise(2, 3, 1, 4, 4).requires_grad_())


def test_every_prior_of_the_table_has_its_gradient_checked() -> None:
    assert {name.split()[0] for name in ON_IMAGES} == set(PRIORS)
