"""The code and the commands of the documents, run as they stand there, from outside the repository."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim.run_store import list_runs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHEAP = {
    "run": ["--engine", "inprocess", "--set", "attack.options.steps=3"],
    "attack": ["--set", "steps=3"],
    "defend": ["--engine", "inprocess", "--set", "attack.options.steps=3", "--set", "federation.num_rounds=1"],
}
"""By command: what makes it affordable in a test, and changes nothing that the documents are about."""


def call(command, folder, *, cheap=()):
    """Run a command of a document in a folder, with options that make it cheaper."""
    program, *words = shlex.split(command.removeprefix("PYTHONPATH=. "))
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *words, *cheap],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


def write_files(page, folder):
    """Write the code blocks of a page that begin with the name of a file."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    for name, code in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    return [name for name, _ in blocks]


def commands(page):
    """Return what a page tells its reader to type."""
    lines = re.findall(r"^\$ (.*)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    typed = ["fl-sim run experiments/digits.toml" if line == "make demo" else line for line in lines]
    return [line for line in typed if re.match(r"(PYTHONPATH=\. )?fl-sim ", line)]


@pytest.mark.slow
def test_parts_of_ones_own_work_as_written(tmp_path):
    assert "my_lab/rounding.py" in write_files("extending.md", tmp_path)
    done = call("fl-sim run stripes.toml", tmp_path, cheap=["--engine", "inprocess"])
    (run,) = list_runs(tmp_path / "runs")
    assert done.stdout.strip().split("\n")[-1] == str(Path("runs") / run.folder.name)
    assert run.report_path.exists()
    update = run.recording.read_round(1).updates[0].delta(run.recording.read_round(1).global_parameters, 0.1)
    steps = next(iter(update.values())) / 1e-5
    assert (steps - steps.round()).abs().max().item() < 0.01  # the defense was applied
    assert len(list(run.scores.glob("WeightRows-*/*.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "num_commands"), [("tutorial.md", 6), ("how-to/my-model.md", 2), ("how-to/my-defense.md", 1)]
)
def test_a_page_can_be_followed(page, num_commands, tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    write_files(page, tmp_path)
    found = commands(page)
    assert len(found) == num_commands
    for command in found:
        call(command, tmp_path, cheap=CHEAP.get(command.split("fl-sim ")[1].split()[0], []))
