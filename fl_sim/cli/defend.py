"""``fl-sim defend``: what defenses cost, and what leaks in spite of them."""

import shlex
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as Bars

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.campaign_observer import TaskFailure
from fl_sim.cli.campaign_progress import AttackBars
from fl_sim.cli.experiment_check import check_experiment, with_absolute_paths
from fl_sim.cli.image_metrics import load_image_metrics
from fl_sim.cli.options import QuietOption, SetOption, WorkersOption, parse_workers
from fl_sim.cli.terminal import errors, output, progress_bars
from fl_sim.events import Event, EventKind
from fl_sim.files import write_bytes
from tradeoff.campaign import Metrics, StudyObserver, pairs, run_study
from tradeoff.figures import draw_picture
from tradeoff.gallery import draw_gallery, gallery
from tradeoff.outcomes import outcomes
from tradeoff.page import render
from tradeoff.rendering import csv_text, json_text, markdown
from tradeoff.study import Arm, Study, read_study


def defend(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="With a section [defend].")],
    assignments: SetOption = None,
    engine: Annotated[str, typer.Option(help="ray (client processes) or inprocess.")] = "ray",
    folder: Annotated[Path, typer.Option("--output", help="Gets runs, table, pictures and page.")] = Path("defended"),
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train and attack a federation under each defense of a file, and show accuracy lost against leakage stopped.

    Finished federations and attacks are found again, so that the same command resumes.

    Example: fl-sim defend experiments/defend.toml
    """
    chosen = parse_workers(workers)
    own = () if chosen is None else (f"attack.workers={chosen}",)
    study = _checked(read_study(experiment, (*(assignments or ()), *own)))
    target = folder / study.experiment.name
    metrics = load_image_metrics(study.experiment.scoring)
    if not quiet:
        for notice in metrics.notices:
            errors.print(f"[dim]{notice}[/]", highlight=False)
    with progress_bars(quiet=quiet) as bars:
        observer = _Bars(bars, study)
        runs, failures = run_study(
            study,
            runs_dir=target / "runs",
            engine=engine,
            metrics=Metrics(lpips=metrics.lpips, extractor=metrics.extractor),
            observer=observer,
        )
    found = outcomes(study, runs)
    rows = gallery(study, found, runs)
    command = shlex.join(
        ["fl-sim", "defend", str(experiment), *(part for text in assignments or () for part in ("--set", text))]
    )
    text = markdown(study, found, command=command)
    write_bytes(target / "table.md", text.encode())
    write_bytes(target / "results.csv", csv_text(found).encode())
    write_bytes(target / "results.json", json_text(study, found).encode())
    write_bytes(target / "index.html", render(study, found, rows, command=command).encode())
    draw_picture(found).savefig(target / "tradeoff.png", dpi=130)
    if rows:
        draw_gallery(rows).save(target / "gallery.png")
    if not quiet:
        errors.print(text, highlight=False, markup=False, soft_wrap=True)
    output.print(str(target / "index.html"), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _checked(study: Study) -> Study:
    """Check every arm before any is run."""
    study = replace(study, experiment=with_absolute_paths(study.experiment))
    for arm in study.arms:
        for attack in study.attacks:
            check_experiment(replace(study.federation(arm, study.seeds[0]), attack=attack.config))
    return study


class _Bars(StudyObserver):
    """Arms with a time left from what the arms so far took; the replies and attacks of the running one below."""

    def __init__(self, bars: Bars, study: Study) -> None:
        self._bars = bars
        self._num_arms = len(list(pairs(study)))
        self._arms = bars.add_task("arms", total=self._num_arms, note="")
        self._attacks = AttackBars(bars, _describe)
        self._study = study
        self._started = 0.0
        self._worked = False
        self._seconds: list[float] = []
        self._done = 0

    def on_arm(self, arm: Arm, seed: int) -> None:
        self._started, self._worked = time.monotonic(), False
        seeds = f", seed {seed}" if len(self._study.seeds) > 1 else ""
        self._bars.update(self._arms, note=f"{arm.label}{seeds}{self._left()}")

    def on_federation(self, events: Iterable[Event]) -> None:
        self._worked = True
        rounds = self._bars.add_task("  federation rounds", total=self._study.experiment.federation.num_rounds, note="")
        for event in events:
            if event.kind is EventKind.ROUND_RECORDED:
                self._bars.advance(rounds)
            elif event.kind is EventKind.EVALUATED:
                self._bars.update(rounds, note=f"accuracy {event.accuracy or 0:.1%}")
        self._bars.remove_task(rounds)

    def on_attacks(self, num_open: int) -> None:
        self._worked = self._worked or num_open > 0

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        self._attacks.show(key, progress)

    def on_finished(self, key: ResultKey) -> None:
        self._attacks.end(key)

    def on_failed(self, failure: TaskFailure) -> None:
        self._attacks.fail(failure)

    def on_arm_done(self) -> None:
        self._done += 1
        if self._worked:  # what was found again says nothing about what is to come
            self._seconds.append(time.monotonic() - self._started)
        self._bars.advance(self._arms)
        if self._done == self._num_arms:
            self._bars.update(self._arms, note="")

    def _left(self) -> str:
        if not self._seconds:
            return ""
        minutes = (self._num_arms - self._done) * sum(self._seconds) / len(self._seconds) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def _describe(key: ResultKey) -> str:
    return f"  round {key.server_round}, client {key.clients_text}, seed {key.seed}"
