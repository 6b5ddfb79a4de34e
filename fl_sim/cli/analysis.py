"""What follows a recording: attack, score, write the page, say what was found."""

from rich import box
from rich.table import Table

from attacker.campaign import plan_campaign
from attacker.campaign_observer import TaskFailure
from attacker.report.collect import collect_content
from attacker.report.event_files import write_event_files
from attacker.report.page import render
from attacker.results import read_results, result_row, score_results
from attacker.truth import Truth, read_truth
from fl_sim.cli.campaign_progress import show_campaign
from fl_sim.cli.image_metrics import load_image_metrics
from fl_sim.cli.terminal import errors
from fl_sim.config import AttackConfig
from fl_sim.errors import MissingDataError
from fl_sim.files import write_bytes
from fl_sim.run_store import RunStore


def analyse(
    run: RunStore, attack: AttackConfig | None, *, quiet: bool, tensorboard: bool = False, snapshots: bool = False
) -> tuple[TaskFailure, ...]:
    """Attack the recording, score what came out, and write the page.

    Args:
        run: A run whose federation has ended.
        attack: The attack, or ``None`` to write the page with what is there.
        quiet: Show nothing.
        tensorboard: Write event files; without it they are only kept up to date where there are some.
        snapshots: Write images down while they form.

    Returns:
        The attacks that failed.
    """
    failures: tuple[TaskFailure, ...] = ()
    if attack is not None:
        failures = show_campaign(plan_campaign(run, attack, snapshots=snapshots), attack, quiet=quiet)
    truth, notices = find_truth(run)
    notices = (*(f"assumed: {sentence}" for sentence in run.assumed() or ()), *notices)
    if truth is not None:
        scoring = run.experiment().scoring
        metrics = load_image_metrics(scoring)
        notices = (*notices, *metrics.notices)
        score_results(
            run,
            truth,
            threshold_db=scoring.recovered_threshold_db,
            lpips=metrics.lpips,
            extractor=metrics.extractor,
        )
    content = collect_content(run, truth, notices)
    write_bytes(run.report_path, render(content).encode())
    if tensorboard or run.tensorboard.exists():
        write_event_files(run.tensorboard, content)
    if not quiet:
        for notice in notices:
            errors.print(f"[dim]{notice}[/]", highlight=False)
        errors.print(scores_table(run))
        errors.print(f"page: [bold]{run.report_path}[/]", highlight=False, soft_wrap=True)
    return failures


def find_truth(run: RunStore) -> tuple[Truth | None, tuple[str, ...]]:
    """Return the truth, or ``None`` and the notice that says why it is missing."""
    try:
        truth = read_truth(run.folder)
        truth.all_label_counts()  # in a deployment every client's images are on a machine of its own
        return truth, ()
    except MissingDataError as error:
        return None, (f"unscored: {error}",)


def scores_table(run: RunStore) -> Table:
    """Return one line for each result, with what it is to be compared with; fits 80 columns."""
    table = Table(
        title=f"what leaked: {run.folder.name}",
        caption="PSNR in dB; guess: PSNR of the mean image of the rest of the data; found: share of images above the "
        "threshold; * marks an upper bound, everything else is what an honest-but-curious server has.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("round", "client"):
        table.add_column(heading, justify="right")
    table.add_column("attack", no_wrap=True)
    for heading in ("PSNR", "guess", "SSIM", "found", "wrong labels", "sec"):
        table.add_column(heading, justify="right")
    for row in map(result_row, read_results(run)):
        table.add_row(
            str(row["round"]),
            "+".join(map(str, (row["client"], *row["other_clients"]))),
            row["attack"] + ("" if row["realistic"] else " *"),
            _number(row["mean_psnr_db"], ".1f"),
            _number(row.get("baseline_mean_image_psnr_db"), ".1f"),
            _number(row["mean_ssim"], ".2f"),
            _number(row["recovered_share"], ".0%"),
            "–" if row["num_images"] is None else f"{row['label_count_error']}/{row['num_images']}",
            _number(row["seconds"], ".0f"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
