"""``benchmarks/throughput.py``: both ways compute the same, and the committed table is that of its numbers."""

import json
from pathlib import Path

import pytest
import torch

throughput = pytest.importorskip("throughput", reason="needs matplotlib")

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "throughput.json"
TINY = {"model": "convnet", "num_images": 4, "epochs": 1, "simulation": "full"}


def test_the_batch_holds_the_client_that_is_measured_alone() -> None:
    batch, num_parameters = throughput.problem(**TINY, clients=2)
    alone, same_parameters = throughput.problem(**TINY, clients=None)
    assert num_parameters == same_parameters
    found, expected = batch(), alone()
    assert found.shape == (2, *expected.shape)
    # The same generator draws the images of the first client first.
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-6)


def test_width_multiplies_the_network() -> None:
    small, large = (throughput.network("femnist_cnn", width)[0] for width in (0.25, 1.0))
    assert [layer.out_channels for layer in (small.conv1, small.conv2)] == [8, 16]
    assert sum(tensor.numel() for tensor in large.parameters()) == 338_778


def test_the_committed_table_is_that_of_the_committed_numbers() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    written = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert rows == [line for line in throughput.markdown(result).splitlines() if line.startswith("|")]
    assert {line["clients"] for line in result["throughput"]} == {1, 2, 8, 32}
