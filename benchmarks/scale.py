"""What a federation of many clients costs the machine: memory over the rounds, seconds and bytes for each update.

    python benchmarks/scale.py experiments/thousand_clients.toml --output benchmarks/results/scale

Runs ``fl-sim run EXPERIMENT --no-attack`` and adds up the proportional memory (PSS) of all its processes, the command,
the server, Ray and its workers, twice a second. Needs Linux. Writes OUTPUT.json, OUTPUT.md and OUTPUT.png.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil
from matplotlib.figure import Figure

from fl_sim.events import EventKind, read_events
from fl_sim.run_store import RunStore

SECONDS_BETWEEN = 0.5
GIBIBYTE = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Memory at a moment.

    Attributes:
        seconds: Since the start of the command.
        rounds: Rounds recorded so far.
        bytes: PSS of all processes: what they share counts once.
    """

    seconds: float
    rounds: int
    bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, default=Path("scale"))
    parser.add_argument("--engine", default="ray")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run, samples = measure(options.experiment, options.engine, Path(folder))
        found = summarise(run, samples, options.engine)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    draw(samples).savefig(options.output.with_suffix(".png"), dpi=130)
    print(markdown(found))


def measure(experiment: Path, engine: str, runs_dir: Path) -> tuple[RunStore, list[Sample]]:
    """Run an experiment without attack, and sample the memory of its processes."""
    command = [sys.executable, "-c", "from fl_sim.cli import app; app()", "run", str(experiment), "--no-attack", "-q"]
    started, samples = time.monotonic(), list[Sample]()
    process = subprocess.Popen([*command, "--engine", engine, "--runs-dir", str(runs_dir)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        rounds = len(list(runs_dir.glob("*/recording/rounds/*/round.json")))
        samples.append(Sample(seconds=time.monotonic() - started, rounds=rounds, bytes=memory_of(process.pid)))
        time.sleep(SECONDS_BETWEEN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    (folder,) = (path.parent for path in runs_dir.glob("*/experiment.toml"))
    return RunStore(folder), samples


def memory_of(pid: int) -> int:
    """Return the PSS in bytes of a process and of all that stem from it."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total


def summarise(run: RunStore, samples: list[Sample], engine: str) -> dict[str, object]:
    """Return the figures of a run."""
    federation = run.experiment().federation
    events = read_events(run.events_path)
    replies = sum(event.kind is EventKind.REPLY_RECEIVED for event in events)
    accuracies = [event.accuracy for event in events if event.accuracy is not None]
    recorded = sum(path.stat().st_size for path in run.recording.folder.rglob("*") if path.is_file())
    first, last = (
        statistics.median(sample.bytes for sample in samples if low <= sample.rounds < high)
        for low, high in ((2, 7), (federation.num_rounds - 5, federation.num_rounds))
    )
    # From the first to the last but one record: neither start nor end.
    at_work = [sample.seconds for sample in samples if 0 < sample.rounds < federation.num_rounds]
    seconds_per_round = (at_work[-1] - at_work[0]) / (federation.num_rounds - 1)
    return {
        "experiment": run.experiment().name,
        "engine": engine,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "clients": run.experiment().data.num_clients,
        "rounds": federation.num_rounds,
        "updates": replies,
        "final_accuracy": accuracies[-1] if accuracies else None,
        "seconds": samples[-1].seconds,
        "seconds_per_update": seconds_per_round * federation.num_rounds / replies,
        "recorded_bytes_per_update": recorded / replies,
        "peak_bytes": max(sample.bytes for sample in samples),
        "median_bytes_rounds_3_to_7": first,
        "median_bytes_last_5_rounds": last,
        "samples": [[round(sample.seconds, 1), sample.rounds, sample.bytes] for sample in samples],
    }


def markdown(found: dict[str, object]) -> str:
    """Return the figures as a table."""

    def number(name: str) -> float:
        value = found[name]
        assert isinstance(value, int | float)
        return value

    rows = {
        "clients / rounds / updates": f"{found['clients']} / {found['rounds']} / {found['updates']}",
        "seconds, start and end included": f"{number('seconds'):.0f}",
        "seconds an update": f"{number('seconds_per_update'):.3f}",
        "bytes recorded an update": f"{number('recorded_bytes_per_update'):,.0f}",
        "peak memory of all processes": f"{number('peak_bytes') / GIBIBYTE:.2f} GiB",
        "memory in rounds 3 to 7": f"{number('median_bytes_rounds_3_to_7') / GIBIBYTE:.2f} GiB",
        "memory in the last 5 rounds": f"{number('median_bytes_last_5_rounds') / GIBIBYTE:.2f} GiB",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"{found['experiment']}, engine {found['engine']}; {found['machine']}; {found['date']}\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def draw(samples: list[Sample]) -> Figure:
    """Draw memory over time, with a mark for each recorded round."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [one.seconds for one in samples], [one.bytes / GIBIBYTE for one in samples], color="#2563a8", linewidth=1.5
    )
    for before, after in pairwise(samples):
        if after.rounds > before.rounds:
            axes.axvline(after.seconds, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.set(xlabel="seconds (grey: a round is recorded)", ylabel="memory of all processes, GiB", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
