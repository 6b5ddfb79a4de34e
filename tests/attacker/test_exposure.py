"""Leakage along training: traits against hand-made clients, correlations against known ones, sums against leaks."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_problems import pictures

from attacker.exposure.exposures import Leak, exposure
from attacker.exposure.figures import draw_exposure
from attacker.exposure.rank_correlation import rank_correlation
from attacker.exposure.rendering import csv_text, json_text
from attacker.exposure.traits import DataTraits, data_traits


def test_traits_of_hand_made_clients() -> None:
    images = pictures(4)
    same = data_traits(images[[0, 0, 1]], torch.tensor([2, 2, 2]), num_classes=4, threshold_db=20.0)
    assert (same.num_examples, same.num_labels, same.label_entropy_bits) == (3, 1, 0.0)
    assert same.near_duplicate_share == pytest.approx(2 / 3)
    other = float(-10 * (images[0] - images[1]).square().mean().log10())
    assert same.nearest_image_db == pytest.approx((100 + 100 + other) / 3, rel=1e-4)
    spread = data_traits(images, torch.arange(4), num_classes=4, threshold_db=20.0)
    assert (spread.num_labels, spread.near_duplicate_share) == (4, 0.0)
    assert spread.label_entropy_bits == pytest.approx(2.0)
    single = data_traits(torch.full((1, 1, 8, 8), 0.5), torch.tensor([0]), num_classes=4, threshold_db=20.0)
    assert (single.nearest_image_db, single.contrast) == (None, 0.0)
    with pytest.raises(ValueError, match="at least one image"):
        data_traits(images[:0], torch.tensor([], dtype=torch.int64), num_classes=4, threshold_db=20.0)


def test_rank_correlation_is_that_of_scipy_with_an_exact_p_for_few() -> None:
    x, y = [3.0, 1.0, 2.0, 5.0, 4.0], [0.1, 0.0, 0.4, 0.9, 0.5]
    found = rank_correlation([*x, None], [*y, 7.0])
    assert found is not None
    assert found.number == 5
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    every = np.array([spearmanr(x, list(order)).statistic for order in itertools.permutations(y)])
    assert found.p_value == pytest.approx(2 * np.mean(every >= found.rho - 1e-9))
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    perfect = rank_correlation(list(range(12)), [2.0 * i for i in range(12)])
    assert perfect is not None
    assert (perfect.rho, perfect.p_value < 0.001) == (pytest.approx(1.0), True)


def leak(server_round: int, client_id: int, psnr: float, guess: float = 12.0) -> Leak:
    values = {"psnr_db": psnr, "mean_image_psnr_db": guess, "exposure_db": psnr - guess, "recovered_share": 0.5}
    return Leak(server_round=server_round, client_id=client_id, values=values)


def traits(client_id: int) -> DataTraits:
    return DataTraits(
        num_examples=10 - client_id,
        num_labels=2,
        label_entropy_bits=1.0,
        nearest_image_db=None if client_id == 0 else 10.0 + client_id,
        near_duplicate_share=0.0,
        contrast=0.3,
    )


LEAKS = [leak(r, c, 15.0 + c - r / 10, guess=12.0 + c / 2) for r in (1, 10) for c in range(4)]


def test_rounds_clients_and_explanations() -> None:
    found = exposure(LEAKS, traits, {0: 0.1, 9: 0.8})
    assert [client.client_id for client in found.clients] == [3, 2, 1, 0]
    assert found.clients[0].by_round == {1: pytest.approx(3 + 1.5 - 0.1), 10: pytest.approx(3 + 1.5 - 1.0)}
    assert [one.accuracy for one in found.rounds] == [0.1, 0.8]
    first, last = (one.values["exposure_db"] for one in found.rounds)
    assert (first.number, first.mean - last.mean) == (4, pytest.approx(0.9))
    size = found.explanations["images (N_c)"]
    assert size is not None
    assert size.rho == pytest.approx(-1.0)
    assert found.explanations["distinct labels"] is None
    assert found.between_rounds is not None
    assert found.between_rounds.rho == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one scored attack"):
        exposure([], traits, {})


def test_a_client_that_looks_like_all_others_is_not_exposed() -> None:
    found = exposure([leak(1, 0, 25.0, guess=24.0), leak(1, 1, 18.0, guess=12.0)], traits, {})
    assert [client.client_id for client in found.clients] == [1, 0]


def test_what_is_written_says_what_was_found() -> None:
    found = exposure(LEAKS, traits, {0: 0.1, 9: 0.8})
    lines = list(csv.DictReader(csv_text(found).splitlines()))
    assert [(line["round"], line["client"]) for line in lines][:2] == [("1", "0"), ("1", "1")]
    assert (lines[0]["num_examples"], lines[0]["nearest_image_db"], lines[1]["nearest_image_db"]) == ("10", "", "11")
    content = json.loads(json_text(found, setting={"run": "r"}))
    assert "truth" in content["note"]
    assert content["run"] == "r"
    assert content["clients"][0]["client_id"] == 3
    named = {line["trait"]: line for line in content["explanations"]}
    assert named["images (N_c)"]["rho"] == pytest.approx(-1.0)
    assert "rho" not in named["contrast"]
    assert len(draw_exposure(found, title="t").axes) == 3  # rounds, their accuracy, the trait
    one_round = exposure(LEAKS[:2], traits, {})
    assert one_round.between_rounds is None
    assert len(draw_exposure(one_round, title="t").axes) == 2
