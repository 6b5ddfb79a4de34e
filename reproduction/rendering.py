"""A summary as Markdown, CSV and a picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacker.campaign import resolve_setting
from attacker.estimate import Estimate
from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from fl_sim.config import AttackConfig
from fl_sim.options import build
from reproduction.campaign import Request, cells_of
from reproduction.summary import SummaryCell

_COLOURS = ("#2563a8", "#c2571a", "#2f8a4c", "#8a4ba3", "#b03050", "#6b6b6b", "#8c7a1f", "#1f8c8c")
_INK = "#333333"


def markdown(request: Request, cells: Sequence[SummaryCell], *, command: str) -> str:
    """Return the table with everything that must stand beside its numbers.

    Args:
        request: What was wanted.
        cells: What `summarise` returned.
        command: What the user typed.
    """
    methods, images = request.methods, request.table.measures == "images"
    headings = [
        "setting",
        "clients",
        *(method.title for method in methods.values()),
        *(["mean image"] if images else []),
    ]
    lines = [
        f"# Table {request.table.number}: {request.table.title}",
        "",
        f"    {command}",
        "",
        _conditions(request, cells),
        "",
        _legend(request),
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for row in request.rows:
        own = [cell for cell in cells if cell.row == row.name]
        counts = sorted({cell.clients for cell in own})
        shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        baseline = f" {_baseline(own)} |" if images else ""
        lines.append(f"| {row.title} | {shown} | " + " | ".join(map(_cell_text, own)) + f" |{baseline}")
    return "\n".join(lines) + "\n"


def csv_text(cells: Sequence[SummaryCell]) -> str:
    """Return one line for each cell and measured number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("row", "method", "clients", "quantity", "mean", "standard_error", "paper"))
    for cell in cells:
        for name, estimate in cell.values.items():
            paper = getattr(cell.paper, name, None) if cell.paper is not None else None
            error = estimate.standard_error
            writer.writerow((cell.row, cell.method, cell.clients, name, estimate.mean, error, paper))
    return buffer.getvalue()


def write_picture(path: Path, request: Request, cells: Sequence[SummaryCell]) -> None:
    """Draw ours with standard errors, the paper's cells, and the mean image's line.

    Args:
        path: A ``.png`` or ``.svg`` file.
        request: What was wanted.
        cells: What `summarise` returned.
    """
    labels_only = request.table.measures == "labels"
    quantities = (("wrong_labels", "wrong labels of 50"),)
    if not labels_only:
        quantities = (("psnr_db", "PSNR, dB"), ("recovered_share", f"above {request.data.threshold_db:g} dB"))
    width = 2.2 + 1.5 * len(request.rows)
    figure = Figure(figsize=(max(6.0, width), 3.2 * len(quantities)), layout="constrained")
    axes = figure.subplots(len(quantities), squeeze=False)[:, 0]
    for axis, (quantity, label) in zip(axes, quantities, strict=True):
        _draw(axis, request, cells, quantity)
        axis.set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes[0].set_title(f"Table {request.table.number}: {request.table.title}", loc="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(axis: Axes, request: Request, cells: Sequence[SummaryCell], quantity: str) -> None:
    step = 0.8 / len(request.methods)
    rows = [row.name for row in request.rows]
    for index, (name, method) in enumerate(request.methods.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        own = [cell for cell in cells if cell.method == name]
        places = [rows.index(cell.row) - 0.4 + (index + 0.5) * step for cell in own]
        ours = [(x, cell.values[quantity]) for x, cell in zip(places, own, strict=True) if quantity in cell.values]
        if ours:
            axis.errorbar(
                [x for x, _ in ours],
                [estimate.mean for _, estimate in ours],
                yerr=[estimate.standard_error or 0.0 for _, estimate in ours],
                fmt="o",
                color=colour,
                markersize=5,
                capsize=2,
                label=method.title,
            )
        papers = [(x, getattr(cell.paper, quantity)) for x, cell in zip(places, own, strict=True) if cell.paper]
        axis.plot([x for x, _ in papers], [y for _, y in papers], "x", color=colour, markersize=6, alpha=0.55)
    baseline = f"mean_image_{quantity}"
    levels = [(rows.index(cell.row), cell.values[baseline].mean) for cell in cells if baseline in cell.values]
    for x in sorted({x for x, _ in levels}):
        own = [y for place, y in levels if place == x]
        axis.hlines(sum(own) / len(own), x - 0.42, x + 0.42, color=_INK, linewidth=1, linestyle=":")
    axis.plot([], [], "x", color=_INK, alpha=0.55, label="the paper, on its own data")
    if levels:
        axis.plot([], [], ":", color=_INK, label="mean image of other clients")
    axis.set_xticks(range(len(rows)), [row.title.replace(", ", ",\n") for row in request.rows])
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
    if quantity == "recovered_share":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_ylim(bottom=0)


def _conditions(request: Request, cells: Sequence[SummaryCell]) -> str:
    data, seeds = request.data, ", ".join(map(str, request.seeds))
    steps = sorted({_steps(cell.attack) for cell in cells_of(request)} if request.table.measures == "images" else set())
    parts = [
        f"Data: `{data.file}` ({data.caveat}), clients from {data.first_client} on.",
        f"Network `{data.model}`, N_c = 50, eta = 0.004, full participation, federation seed 0, attack seed {seeds}.",
        _threat_model(request),
    ]
    if request.table.measures == "images":
        counted = " or ".join(map(str, steps))
        parts.append(f"{counted} optimisation steps; reconstructions clipped to [0, 1] before PSNR.")
    days = sorted({day for cell in cells for day in cell.days})
    if days:
        parts.append(f"Measured on {days[0]}." if len(days) == 1 else f"Measured from {days[0]} to {days[-1]}.")
    return " ".join([*parts, request.table.remark]).strip()


def _steps(attack: AttackConfig) -> int:
    """Return the optimisation steps of an attack, or of the one that it runs for others."""
    setting = resolve_setting(attack)
    if "attack" in setting.options:
        return _steps(AttackConfig(name=setting.options["attack"], options=setting.options["options"]))
    found = build(ATTACKS[setting.name], setting.options, where="options")
    return int(getattr(found, "num_steps", setting.options["steps"]))


def _threat_model(request: Request) -> str:
    names = dict.fromkeys(cell.attack.threat_model for cell in cells_of(request))
    models = [THREAT_MODELS[name] for name in names]
    spelled = [
        f"`{model.name}` ({'realistic' if model.realistic else 'an upper bound'}). {model.description}"
        for model in models
    ]
    return f"Threat model: {' In other rows: '.join(spelled)}"


def _legend(request: Request) -> str:
    if request.table.measures == "labels":
        return "Cells: mean number of wrong labels of 50 ± standard error over clients; in brackets the paper's mean."
    return (
        "Cells: mean PSNR in dB ± standard error over clients / share of images above "
        f"{request.data.threshold_db:g} dB; in brackets the paper's, on its own data. Mean image: what the mean of the "
        "images of other clients scores."
    )


def _cell_text(cell: SummaryCell) -> str:
    if not cell.values:
        return "–"
    paper = cell.paper
    if "psnr_db" not in cell.values:
        cited = "" if paper is None else f" ({paper.wrong_labels:.1f})"
        return f"{_number(cell.values['wrong_labels'])}{cited}"
    cited = ""
    if paper is not None and paper.psnr_db is not None and paper.recovered_share is not None:
        cited = f" ({paper.psnr_db:.1f} / {paper.recovered_share:.0%})"
    return f"{_number(cell.values['psnr_db'])} / {cell.values['recovered_share'].mean:.0%}{cited}"


def _number(estimate: Estimate) -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.1f}"
    return f"{estimate.mean:.1f}{error}"


def _baseline(cells: Sequence[SummaryCell]) -> str:
    for cell in cells:
        if "mean_image_psnr_db" in cell.values:
            share = cell.values["mean_image_recovered_share"].mean
            return f"{cell.values['mean_image_psnr_db'].mean:.1f} / {share:.0%}"
    return "–"
