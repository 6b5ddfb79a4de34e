"""``benchmarks/order_noise.py`` measures what it says, on a small file of the same form."""

from pathlib import Path

import numpy as np
import order_noise
import pytest


def test_the_truth_explains_more_than_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_noise, "CLIENTS", (0,))
    monkeypatch.setattr(order_noise, "SETTINGS", ((2, 2),))
    monkeypatch.setattr(order_noise, "SIMULATIONS", (1, "full"))
    monkeypatch.setattr(order_noise, "RANKS", (5, 8))
    monkeypatch.setattr(order_noise, "ORDERS", 3)
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels, clients = np.arange(300) % 62, np.arange(300) // 5
    np.savez(tmp_path / "femnist_like_10k.npz", images=images, labels=labels, clients=clients)
    order_noise.main(["--data-folder", str(tmp_path), "--output", str(tmp_path / "found.md")])
    rows = {
        name.strip(): cells
        for name, *cells in (
            line.strip("|").split("|") for line in (tmp_path / "found.md").read_text().splitlines() if "|" in line
        )
    }
    percent = {
        name: float(cells[0].strip().rstrip("%")) for name, cells in rows.items() if cells[0].strip().endswith("%")
    }
    assert 0 < percent["simulation 'full' at the true images"] < percent["simulation 1 at the true images"]
    medians = {
        name: float(cells[0].split()[0]) for name, cells in rows.items() if "(" in cells[0] and " to " in cells[0]
    }
    assert medians.pop("true images") < 0.2 < 0.5 < medians["copies of another, noise of 0.1 sd"]
