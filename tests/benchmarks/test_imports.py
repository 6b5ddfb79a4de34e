"""Every benchmark can at least be loaded: they are run by hand, months after what they import has moved."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [path.stem for path in BENCHMARKS])
def test_a_benchmark_loads(name):
    assert importlib.import_module(name).__doc__
