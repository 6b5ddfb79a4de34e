"""The code of docs/extending.md, run as it stands there, from outside the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim.run_store import list_runs

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path):
    for name, code in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    assert (tmp_path / "my_lab" / "rounding.py").exists()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "fl-sim"), "run", "stripes.toml", "--engine", "inprocess"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert done.stdout.strip().split("\n")[-1] == str(Path("runs") / run.folder.name)
    assert run.report_path.exists()
    update = run.recording.read_round(1).updates[0].delta(run.recording.read_round(1).global_parameters, 0.1)
    steps = next(iter(update.values())) / 1e-5
    assert (steps - steps.round()).abs().max().item() < 0.01  # the defense was applied
    assert len(list(run.scores.glob("WeightRows-*/*.json"))) == 2
