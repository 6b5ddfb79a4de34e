"""``benchmarks/gpu.py``: what it imports, that its rows are the paper's, and a tiny run on the CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from reproduction.tables import TABLES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    found = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["gpu"] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clients of four noisy pictures."""
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (8, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "femnist_like_10k.npz", images=images, labels=np.arange(8), clients=np.arange(8) // 4)
    return tmp_path


def test_its_imports_need_no_engine() -> None:
    unwanted = ("flwr", "ray", "pydantic", "sklearn", "torchvision", "typer", "safetensors")
    code = (
        f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}, run_name='imported'); "
        f"print(*[name for name in {unwanted!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SCRIPT.parent)])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_its_rows_are_those_of_table_1(gpu: ModuleType) -> None:
    paper = [(row.training.epochs, row.training.batch_size) for row in TABLES["table1"].rows]
    assert list(gpu.ROWS) == paper


def test_a_tiny_run_prints_a_line_for_each_row_and_attack(
    gpu: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--clients", "0", "1", "--images", "2", "--rows", "1,1", "2,2", "--steps", "2"]
    gpu.main([*arguments, "--data-folder", str(data), "--output", str(tmp_path / "gpu.md")])
    lines = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [[cell.strip() for cell in line] for line in lines] == [
        [row, method, "2"] for row in ("1, 1", "2, 2") for method in ("ours_prior", "feature_span")
    ]
    assert (tmp_path / "gpu.md").read_text().count("ours_prior") == 2


def test_clients_at_once_are_the_same_clients(
    gpu: ModuleType, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attacker.joint_simulation._WORTH_IT", float("inf"))
    found = []
    for at_once in ("1", "2"):
        arguments = ["--device", "cpu", "--clients", "0", "1", "--images", "2", "--rows", "2,2", "--steps", "2"]
        gpu.main([*arguments, "--at-once", at_once, "--data-folder", str(data)])
        printed = capsys.readouterr().out
        assert f"{at_once} at once" in printed
        lines = [line.split("|") for line in printed.splitlines() if line.startswith("| ")][1:]
        found.append([(line[2].strip(), line[3].strip(), line[7].strip()) for line in lines])  # clients, PSNR
    assert found[0] == found[1]


def test_the_bar_is_measured_by_one_command(gpu: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--clients", "0", "1", "--images", "2", "--rows", "2,1", "--steps", "4"]
    gpu.main([*arguments, "--compare", "1", "2", "--data-folder", str(data)])
    lines = [line.split("|")[2:7] for line in capsys.readouterr().out.splitlines() if line.startswith("| 2, 1")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [(line[0], line[1]) for line in cells] == [
        (what, size)
        for what in ("ours_prior", "feature_span", "engine alone, full", "engine alone, 5")
        for size in ("1", "2")
    ]
    assert [line[3] for line in cells[::2]] == ["1.00"] * 4
    assert [line[4] for line in cells[:2]] == ["alone", cells[1][4]]
    assert cells[1][4].startswith("2 attacks computed")
    with pytest.raises(SystemExit, match="--compare takes sizes from 1 to 2"):
        gpu.main([*arguments, "--compare", "1", "3", "--data-folder", str(data)])


def test_when_the_time_is_up_nothing_half_done_is_counted(
    gpu: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.main(["--device", "cpu", "--clients", "0", "--images", "2", "--minutes", "0", "--data-folder", str(data)])
    printed = capsys.readouterr().out
    assert "time is up in client 0, E = 1, m = 5, ours_prior" in printed
    assert "| ours_prior |" not in printed


def test_without_its_data_it_says_so(gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not exist; name its folder with --data-folder"):
        gpu.main(["--data-folder", str(tmp_path)])
