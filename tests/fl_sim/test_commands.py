"""What every command owes to somebody who meets it for the first time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_sim.cli import app
from fl_sim.cli.main import COMMANDS

FL_SIM = str(Path(sys.executable).parent / "fl-sim")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(name):
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"Example: fl-sim {name}" in shown.output


def test_the_list_of_commands_describes_each():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for name in COMMANDS:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"│ {name} "))
        assert len(line.strip("│ ").split()) > 5


def test_a_shell_completes_commands():
    environment = {"_FL_SIM_COMPLETE": "complete_bash", "COMP_WORDS": "fl-sim d", "COMP_CWORD": "1"}
    done = subprocess.run([FL_SIM], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [name for name in COMMANDS if name.startswith("d")]


def test_a_misspelt_command_is_named():
    shown = CliRunner().invoke(app, ["atack"], env={"COLUMNS": "200"})
    assert shown.exit_code == 2
    assert "'atack'" in shown.output
    assert "Did you mean 'attack'?" in shown.output


def test_calling_one_command_does_not_import_the_others():
    program = (
        "import sys, fl_sim.cli.main; print([m for m in ('torch', 'flwr', 'ray', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # a shell that completes a word imports no more than this
