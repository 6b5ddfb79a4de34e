"""``benchmarks/feature_drift.py`` measures what it says, on a small file of the same form."""

from pathlib import Path

import feature_drift
import numpy as np
import pytest


def test_true_images_keep_less_outside_than_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_drift, "CLIENTS", (0,))
    monkeypatch.setattr(feature_drift, "POSITIONS", (0.0, 0.5))
    monkeypatch.setattr(feature_drift, "SETTINGS", (("femnist_like", 3, 2),))
    monkeypatch.setattr(feature_drift, "RANK", 10)
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "femnist_like_10k.npz", images=images, labels=np.arange(300) % 62, clients=np.arange(300) // 5)
    feature_drift.main(["--data-folder", str(tmp_path), "--output", str(tmp_path / "found.md")])
    rows = (tmp_path / "found.md").read_text().splitlines()[-2:]
    (true_start, mixed_start), (true_half_way, mixed_half_way) = (
        map(float, row.split("|")[2].split("/")) for row in rows
    )
    assert 0 < true_start < mixed_start
    assert 0 < true_half_way < mixed_half_way
    assert true_half_way != true_start
