"""``benchmarks/compiled_step.py``: what is traced is the step, whoever compiles it."""

import compiled_step
import pytest


def test_the_traced_step_is_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    # The backend that compiles nothing: what another one makes of the graph is what the benchmark is for.
    compiled_step.main(["--gradients", "2", "--images", "3", "--repeats", "1", "--backend", "eager"])
    line = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "2"
    assert float(cells[-1]) < 1e-5
