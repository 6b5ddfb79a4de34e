"""Scores: against scikit-image, under permutations, at the edges, and through JSON."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from attacker.baselines import MEAN_IMAGE, RANDOM_IMAGES, trivial_baselines
from attacker.matching import UNMATCHED, match
from attacker.metrics.lpips import WEIGHTS_VARIABLE, LpipsUnavailable, load_lpips
from attacker.metrics.psnr import PSNR_CAP_DB, pairwise_psnr_db, psnr_db
from attacker.metrics.ssim import ssim, window_radius, window_sigma
from attacker.score_json import score_from_json, score_to_json
from attacker.scoring import Score, count_label_errors, score
from fl_sim.errors import RecordingError

ALEXNET_WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "alexnet_features.pth"

needs_alexnet = pytest.mark.skipif(not ALEXNET_WEIGHTS.is_file(), reason=f"no AlexNet weights at {ALEXNET_WEIGHTS}")


def pictures(num: int, channels: int = 1, side: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(num, channels, side, side, generator=torch.Generator().manual_seed(seed))


def mean_difference(images: Tensor, references: Tensor) -> Tensor:
    return (images - references).abs().mean(dim=(1, 2, 3))


def scored(images: Tensor, truth: Tensor, **options: object) -> Score:
    labels, true_labels = torch.arange(len(images)) % 3, torch.arange(len(truth)) % 3
    return score(
        images=images,
        labels=labels,
        private_images=truth,
        private_labels=true_labels,
        num_classes=3,
        **options,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 11, 28, 32])
def test_psnr_and_ssim_agree_with_scikit_image(channels: int, side: int) -> None:
    truth = pictures(3, channels, side)
    images = (truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for image, reference, decibel, similarity in zip(
        images, truth, psnr_db(images, truth).tolist(), ssim(images, truth).tolist(), strict=True
    ):
        ours, theirs = image.double().numpy(), reference.double().numpy()
        assert decibel == pytest.approx(peak_signal_noise_ratio(theirs, ours, data_range=1.0), abs=1e-5)
        expected = structural_similarity(
            theirs,
            ours,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=window_sigma(window_radius(side, side)),
            use_sample_covariance=False,
        )
        assert similarity == pytest.approx(expected, abs=1e-6)


def test_psnr_by_hand_and_clipping() -> None:
    black = torch.zeros(1, 1, 4, 4)
    assert psnr_db(torch.full_like(black, 0.1), black).item() == pytest.approx(20.0, abs=1e-5)
    assert psnr_db(torch.full_like(black, -3.0), black).item() == PSNR_CAP_DB
    assert psnr_db(torch.full_like(black, math.nan), black).item() == PSNR_CAP_DB


def test_ssim_refuses_images_without_a_window() -> None:
    with pytest.raises(ValueError, match="at least 3 x 3"):
        window_radius(2, 28)
    assert (window_radius(28, 28), window_sigma(5)) == (5, 1.5)
    assert (window_radius(3, 9), window_sigma(1)) == (1, pytest.approx(1 / 3.5))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)))
def test_matching_undoes_permutations(order: list[int]) -> None:
    truth = pictures(6)
    noisy = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    matching = match(truth, noisy[torch.tensor(order)])
    assert torch.equal(torch.tensor(order)[matching], torch.arange(6))


def test_matching_maximises_the_total() -> None:
    truth, images = pictures(4), pictures(4, seed=9)
    table = pairwise_psnr_db(truth, images)
    best = table[torch.arange(4), match(truth, images)].sum()
    for order in torch.combinations(torch.arange(4), 4, with_replacement=True):
        if len(set(order.tolist())) == 4:
            assert table[torch.arange(4), order].sum() <= best


def test_identical_images_reach_the_cap() -> None:
    truth = pictures(4)
    result = scored(truth.flip(0), truth)
    assert result.matching == (3, 2, 1, 0)
    assert result.psnr_db == (PSNR_CAP_DB,) * 4
    assert result.ssim == pytest.approx((1.0,) * 4)
    assert result.recovered_share == 1.0
    assert result.num_recovered == 4
    assert result.lpips is None
    assert result.mean_lpips is None


def test_recovered_is_strictly_above_the_threshold() -> None:
    truth = pictures(2)
    exact = psnr_db(truth * 0.5, truth).min().item()
    result = scored(truth * 0.5, truth, threshold_db=exact)
    assert result.num_recovered == 1
    assert result.recovered_share == 0.5


def test_fewer_and_more_reconstructions_than_images() -> None:
    truth = pictures(4)
    fewer = scored(truth[[2, 0]], truth)
    assert fewer.matching == (1, UNMATCHED, 0, UNMATCHED)
    assert fewer.psnr_db == (PSNR_CAP_DB, None, PSNR_CAP_DB, None)
    assert fewer.recovered_share == 0.5
    assert fewer.mean_psnr_db == PSNR_CAP_DB
    more = scored(torch.cat([pictures(2, seed=5), truth]), truth)
    assert more.matching == (2, 3, 4, 5)
    nothing = scored(truth[:0], truth)
    assert nothing.matching == (UNMATCHED,) * 4
    assert nothing.mean_psnr_db is None
    assert nothing.recovered_share == 0.0
    assert nothing.label_count_error == 4


def test_images_that_are_not_finite_still_give_a_finite_score() -> None:
    result = scored(torch.full((3, 1, 12, 12), math.nan), pictures(3))
    assert all(value is not None and math.isfinite(value) for value in (*result.psnr_db, *result.ssim))


@pytest.mark.parametrize(
    ("true_counts", "recovered_counts", "errors"),
    [((2, 1, 0), (2, 1, 0), 0), ((2, 1, 0), (0, 1, 2), 2), ((4, 0, 0), (1, 1, 2), 3), ((2, 2, 0), (1, 0, 0), 3)],
)
def test_label_count_errors(true_counts: tuple[int, ...], recovered_counts: tuple[int, ...], errors: int) -> None:
    assert count_label_errors(torch.tensor(true_counts), torch.tensor(recovered_counts)) == errors


def test_inputs_that_do_not_fit_are_refused() -> None:
    truth = pictures(2)
    with pytest.raises(ValueError, match="at least one image"):
        scored(truth, truth[:0])
    with pytest.raises(ValueError, match="one image must have"):
        scored(pictures(2, channels=3), truth)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        score(
            images=truth,
            labels=torch.tensor([0, 2]),
            private_images=truth,
            private_labels=torch.tensor([0, 1]),
            num_classes=2,
        )


def test_baselines_against_hand_computed_numbers() -> None:
    truth = torch.full((3, 1, 8, 8), 0.5)
    pool = torch.stack([torch.full((1, 8, 8), value) for value in (0.2, 0.6)])
    mean_image, random_images = trivial_baselines(
        truth, pool, threshold_db=15.0, generator=torch.Generator().manual_seed(0)
    )
    assert (mean_image.name, mean_image.num_draws, mean_image.stddev_psnr_db) == (MEAN_IMAGE, 1, 0.0)
    assert mean_image.mean_psnr_db == pytest.approx(20.0, abs=1e-4)
    assert mean_image.recovered_share == 1.0
    # Three images from a pool of two: each draw holds one of the two pictures twice.
    dark, light = -20 * math.log10(0.3), -20 * math.log10(0.1)
    assert random_images.name == RANDOM_IMAGES
    assert random_images.num_draws == 5
    assert (2 * dark + light) / 3 <= random_images.mean_psnr_db <= (dark + 2 * light) / 3
    assert 1 / 3 <= random_images.recovered_share <= 2 / 3


def test_baselines_follow_their_generator() -> None:
    truth, pool = pictures(3), pictures(40, seed=4)

    def draw(seed: int) -> object:
        return trivial_baselines(truth, pool, threshold_db=20.0, generator=torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_baselines_refuse_an_empty_pool() -> None:
    with pytest.raises(ValueError, match="0 in the pool"):
        trivial_baselines(pictures(1), pictures(0), threshold_db=20.0, generator=torch.Generator())


def test_json_round_trip() -> None:
    truth = pictures(5)
    baselines = trivial_baselines(truth, pictures(9, seed=3), threshold_db=20.0, generator=torch.Generator())
    original = scored(truth[:4] * 0.9, truth, baselines=baselines, lpips=mean_difference)
    text = json.dumps(score_to_json(original), allow_nan=False)
    restored = score_from_json(json.loads(text))
    assert json.dumps(score_to_json(restored)) == text
    assert restored.matching == original.matching
    assert restored.label_counts == original.label_counts
    assert restored.mean_psnr_db == pytest.approx(original.mean_psnr_db, abs=1e-6)
    assert restored.lpips == pytest.approx(original.lpips, abs=1e-6)
    assert restored.best_baseline is not None
    assert restored.best_baseline.name in (MEAN_IMAGE, RANDOM_IMAGES)


def test_json_of_another_version_is_refused() -> None:
    data = score_to_json(scored(pictures(2), pictures(2)))
    with pytest.raises(RecordingError, match="extra"):
        score_from_json({**data, "extra": 1})
    with pytest.raises(RecordingError, match="mean_ssim"):
        score_from_json({name: value for name, value in data.items() if name != "mean_ssim"})
    with pytest.raises(RecordingError, match="wrong type"):
        score_from_json({**data, "matching": ["0", 1]})
    with pytest.raises(RecordingError, match="wrong type"):
        score_from_json({**data, "recovered_share": None})


@needs_alexnet
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 70)])
def test_lpips_of_equal_and_of_different_images(channels: int, side: int) -> None:
    state = torch.get_rng_state()
    lpips = load_lpips(ALEXNET_WEIGHTS)
    assert torch.equal(state, torch.get_rng_state())
    assert not isinstance(lpips, LpipsUnavailable)
    truth = pictures(2, channels, side)
    smooth = torch.from_numpy(np.full(truth.shape, 0.5, dtype=np.float32))
    assert lpips(truth, truth).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert lpips(smooth, truth).min().item() > 0.2
    assert lpips(truth[:0], truth[:0]).shape == (0,)


def test_lpips_says_why_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "absent.pth"))
    missing = load_lpips()
    assert isinstance(missing, LpipsUnavailable)
    assert "absent.pth" in missing.notice
    assert WEIGHTS_VARIABLE in missing.notice
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    for name in ("foreign.pth", "noise.pth"):
        foreign = load_lpips(tmp_path / name)
        assert isinstance(foreign, LpipsUnavailable)
        assert "features" in foreign.notice
    monkeypatch.delenv(WEIGHTS_VARIABLE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert isinstance(load_lpips(), LpipsUnavailable)
