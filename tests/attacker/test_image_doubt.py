"""Which images are in doubt is told from the update alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec
from torch import Tensor

from attacker.image_doubt import doubts, less_doubtful
from attacker.inversion_problem import InversionProblem
from attacker.metrics.psnr import psnr_db
from attacker.priors.feature_span import update_span
from attacker.recipes import FeatureSpan
from fl_sim.records import LocalTraining


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """Return features (8, 60), and the span of an update that they made."""
    features = noise(8, 60, seed=seed)
    return features, update_span(noise(12, 8, seed=seed + 1000) @ features, rank=8)


@given(seed=st.integers(0, 50), image=st.integers(2, 7))
def test_true_images_are_beyond_doubt_and_others_are_not(seed: int, image: int) -> None:
    features, basis = planted(seed)
    assert doubts(features, basis=basis).max() < 1e-9
    for wrong in (
        noise(60, seed=seed + 2000),
        features[0] + 0.05 * noise(60, seed=seed + 3000),
        0.5 * features[0] + 0.5 * features[1] + 0.05 * noise(60, seed=seed + 4000),
    ):
        spoilt = features.clone()
        spoilt[image] = wrong
        assert doubts(spoilt, basis=basis)[image] > 0.5


@given(seed=st.integers(0, 50))
def test_of_two_versions_the_true_images_are_taken(seed: int) -> None:
    features, basis = planted(seed)
    first, second = features.clone(), features.clone()
    first[:3] = features[5:] + 0.05 * noise(3, 60, seed=seed + 1)
    second[3] = noise(60, seed=seed + 2)
    second[4] = 0.5 * (features[6] + features[7]) + 0.05 * noise(60, seed=seed + 3)
    is_first = less_doubtful(first, second, basis=basis, floor=0.1)
    assert is_first.tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert not less_doubtful(features, features, basis=basis, floor=0.1).any()


def test_an_image_in_doubt_is_searched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    data, truth, labels = spec(), pictures(4, seed=3), torch.arange(4)
    observation = observe(
        cnn(data),
        data,
        truth,
        labels,
        recipe=LocalTraining(epochs=2, batch_size=2, learning_rate=0.02),
        threat_model=FULL_KNOWLEDGE,
    )
    draw, is_first = FeatureSpan.start, iter([True])

    def start(self: FeatureSpan, problem: InversionProblem, generator: torch.Generator) -> Tensor:
        drawn = draw(self, problem, generator)
        if not next(is_first, False):
            return drawn
        planted = problem.to_normalised(truth[problem.labels])
        planted[0] = planted[1] + drawn[0]
        return planted

    def found(**options: Any) -> Tensor:
        nonlocal is_first
        is_first = iter([True])
        attack = FeatureSpan(steps=1, learning_rate=0.05, rounds=2, round_steps=1, hold=1, orders=4, **options)
        result = attack(observation, generator=torch.Generator().manual_seed(0))
        return psnr_db(result.images, truth[result.labels])

    monkeypatch.setattr(FeatureSpan, "start", start)
    left, repaired = found(repair_steps=0), found(repair_steps=100)
    assert repaired[0] > left[0] + 10
    assert repaired[1:].min() > left[1:].min() - 1
