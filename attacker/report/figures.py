"""The figures of the report: accuracy, loss, leakage, matching loss, label skew."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from attacker.baselines import MEAN_IMAGE, RANDOM_IMAGES, Baseline
from attacker.report.content import AttackResult
from attacker.report.themed_svg import MUTED, SERIES, SURFACE, draw_svg
from attacker.scoring import Score
from fl_sim.run_store import RoundEvaluation

HEIGHT = 230
MAX_CURVE_POINTS = 200
MAX_CLASS_NAMES = 26
MAX_CLIENT_NAMES = 24
SKEW_COLOUR = (0.16, 0.46, 0.71)
"""Red, green, blue; its opacity is the count, so that it stands out on light and on dark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """One line of a legend: a CSS class for its key, and a name."""

    key: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A figure with its legend, which is HTML."""

    title: str
    svg: Markup
    legend: tuple[LegendEntry, ...] = ()


def plot_accuracy(evaluations: Sequence[RoundEvaluation]) -> Plot:
    """Draw the test accuracy by round."""
    values = [evaluation.accuracy for evaluation in evaluations]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _draw_by_round(axes, evaluations, values)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    last = f"{values[-1]:.1%} after round {evaluations[-1].server_round}"
    svg = draw_svg(draw, name="accuracy", height=HEIGHT, description=f"Test accuracy by round: {last}.")
    return Plot(title="Test accuracy", svg=svg)


def plot_loss(evaluations: Sequence[RoundEvaluation]) -> Plot:
    """Draw the test loss by round."""
    values = [math.nan if evaluation.loss is None else evaluation.loss for evaluation in evaluations]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _draw_by_round(axes, evaluations, values)
        axes.set_ylim(0, 1.08 * max((value for value in values if math.isfinite(value)), default=1.0))

    last = f"{values[-1]:.3g} after round {evaluations[-1].server_round}"
    return Plot(
        title="Test loss",
        svg=draw_svg(draw, name="loss", height=HEIGHT, description=f"Test loss by round: {last}."),
    )


def plot_leaked_psnr(attacks: Sequence[AttackResult]) -> Plot:
    """Draw the mean PSNR of each scored attack, and what trivial baselines reach."""
    return _plot_leakage(
        attacks,
        title="Mean PSNR, dB",
        name="leakage-psnr",
        of_score=lambda score: score.mean_psnr_db,
        of_baseline=lambda baseline: baseline.mean_psnr_db,
        finish=lambda axes: axes.set_ylim(bottom=0),
    )


def plot_recovered_share(attacks: Sequence[AttackResult]) -> Plot:
    """Draw the share of recovered images of each scored attack, and what trivial baselines reach."""

    def finish(axes: Axes) -> None:
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return _plot_leakage(
        attacks,
        title="Images recovered",
        name="leakage-share",
        of_score=lambda score: score.recovered_share,
        of_baseline=lambda baseline: baseline.recovered_share,
        finish=finish,
    )


def plot_matching_loss(losses: Tensor, *, name: str) -> Plot | None:
    """Draw the matching loss by step, or nothing where there are fewer than two finite values.

    Args:
        losses: (T,).
        name: Prefix of the figure's ids, unique on the page.
    """
    values = losses.detach().cpu().double()
    steps = torch.arange(1, len(values) + 1)[torch.isfinite(values)]
    values = values[torch.isfinite(values)]
    if len(values) < 2:
        return None
    kept = torch.linspace(0, len(values) - 1, min(len(values), MAX_CURVE_POINTS)).round().long()

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(steps[kept].numpy(), values[kept].numpy(), color=SERIES[0])
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
        axes.set_xlabel("step")
        axes.margins(x=0.01)

    described = f"Matching loss by step: from {values[0]:.3g} to {values[-1]:.3g}."
    return Plot(title="Matching loss", svg=draw_svg(draw, name=name, height=190, description=described))


def plot_label_skew(counts: Tensor, class_names: Sequence[str], attacked_clients: Sequence[int]) -> Plot:
    """Draw how many images of each class each client holds.

    Args:
        counts: (clients, K).
        class_names: (K,); numbers stand in where names are missing.
        attacked_clients: Clients to mark.
    """
    num_clients, num_classes = counts.shape
    names = class_names if len(class_names) == num_classes else [str(index) for index in range(num_classes)]
    largest = max(int(counts.max()), 1)
    opacity = (counts.double() / largest).sqrt()
    colours = torch.cat([torch.tensor(SKEW_COLOUR).expand(num_clients, num_classes, 3), opacity[..., None]], dim=2)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.imshow((colours * 255).round().byte().numpy(), aspect="auto", interpolation="none")
        axes.set_xlabel("class")
        axes.set_ylabel("client")
        shown = _thin_out(num_classes, MAX_CLASS_NAMES)
        axes.set_xticks(shown, [_shorten(names[index]) for index in shown])
        if any(len(names[index]) > 2 for index in shown):
            axes.tick_params(axis="x", labelrotation=90)
        shown = _thin_out(num_clients, MAX_CLIENT_NAMES)
        axes.set_yticks(shown, [str(index) for index in shown])
        # Between the picture and the numbers, so that no cell is covered.
        axes.tick_params(axis="y", pad=12)
        marked = [client for client in attacked_clients if 0 <= client < num_clients]
        axes.scatter(
            [-0.5 - 0.016 * num_classes] * len(marked), marked, marker=">", s=36, color=SERIES[3], clip_on=False
        )
        axes.set_xlim(-0.5, num_classes - 0.5)

    height = int(np.clip(90 + 17 * num_clients, 150, 520))
    described = (
        f"Images of each class for {num_clients} clients and {num_classes} classes; the fullest cell has {largest}."
    )
    legend = (
        LegendEntry(key="skew-empty", name="0"),
        LegendEntry(key="skew-full", name=f"{largest} images"),
        LegendEntry(key="skew-marked", name="attacked client"),
    )
    return Plot(
        title="Images by client and class",
        svg=draw_svg(draw, name="label-skew", height=height, description=described),
        legend=legend,
    )


def _draw_by_round(axes: Axes, evaluations: Sequence[RoundEvaluation], values: Sequence[float]) -> None:
    rounds = [evaluation.server_round for evaluation in evaluations]
    axes.plot(rounds, list(values), color=SERIES[0], marker="o" if len(rounds) <= 40 else "")
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _plot_leakage(
    attacks: Sequence[AttackResult],
    *,
    title: str,
    name: str,
    of_score: Callable[[Score], float | None],
    of_baseline: Callable[[Baseline], float],
    finish: Callable[[Axes], object],
) -> Plot:
    """Draw one value of the scores: by round, or by client where only one round was attacked."""
    scored = [(attack, attack.score) for attack in attacks if attack.score is not None]
    by_round = len({attack.server_round for attack, _ in scored}) > 1
    numbers = {attack.server_round if by_round else attack.client_id for attack, _ in scored}
    positions = {number: position for position, number in enumerate(sorted(numbers))}

    def position(attack: AttackResult) -> int:
        return positions[attack.server_round if by_round else attack.client_id]

    series = list(dict.fromkeys(_series_name(attack) for attack, _ in scored))
    points = {
        one: [
            (position(attack), value)
            for attack, score in scored
            if _series_name(attack) == one and (value := of_score(score)) is not None
        ]
        for one in series
    }
    guesses = {
        kind: [
            (position(attack), of_baseline(baseline))
            for attack, score in scored
            for baseline in score.baselines
            if baseline.name == kind
        ]
        for kind in (MEAN_IMAGE, RANDOM_IMAGES)
    }

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _draw_level(axes, guesses[MEAN_IMAGE], "--")
        _draw_level(axes, guesses[RANDOM_IMAGES], ":")
        for number, one in enumerate(series):
            colour = SERIES[number % len(SERIES)]
            shift = 0.0 if len(series) == 1 else 0.24 * (number / (len(series) - 1) - 0.5)
            _draw_points(axes, points[one], colour, shift, connected=by_round)
        axes.set_xlabel("round" if by_round else "client")
        axes.set_xlim(-0.6, len(positions) - 0.4)
        _name_positions(axes, sorted(positions))
        finish(axes)

    described = "; ".join(
        f"{one}: {fmean(value for _, value in found):.3g} on average" for one, found in points.items() if found
    )
    legend = [LegendEntry(key=f"dot series-{number % len(SERIES) + 1}", name=one) for number, one in enumerate(series)]
    legend += [
        LegendEntry(key=style, name=f"guess: {kind}")
        for (kind, found), style in zip(guesses.items(), ("dashed", "dotted"), strict=True)
        if found
    ]
    svg = draw_svg(
        draw, name=name, height=HEIGHT, description=f"{title} by {'round' if by_round else 'client'}: {described}."
    )
    return Plot(title=title, svg=svg, legend=tuple(legend))


def _series_name(attack: AttackResult) -> str:
    return attack.attack if attack.threat_model.realistic else f"{attack.attack} (upper bound)"


def _draw_points(
    axes: Axes, points: Sequence[tuple[int, float]], colour: str, shift: float, *, connected: bool
) -> None:
    """Draw every result as a dot and, over rounds, their mean as a line."""
    if connected:
        means = _means(points)
        axes.plot([x + shift for x in means], list(means.values()), color=colour)
    crowded = len(points) > 2 * len(_means(points))
    axes.plot(
        [x + shift for x, _ in points],
        [y for _, y in points],
        linestyle="",
        marker="o",
        markersize=6,
        color=colour,
        markeredgecolor=SURFACE,
        alpha=0.55 if crowded else 1.0,
    )


def _draw_level(axes: Axes, points: Sequence[tuple[int, float]], style: Literal["--", ":"]) -> None:
    """Draw the mean at each position as a short dash of its own: a baseline belongs to one private batch."""
    means = _means(points)
    if len(means) <= 12:
        axes.hlines(
            list(means.values()),
            [x - 0.38 for x in means],
            [x + 0.38 for x in means],
            MUTED,
            linestyles=style,
            linewidth=1.6,
        )
    else:
        axes.plot(list(means), list(means.values()), color=MUTED, linestyle=style, linewidth=1.6)


def _means(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return the mean value at each position, by rising position."""
    return {x: fmean(y for other, y in points if other == x) for x in sorted({x for x, _ in points})}


def _name_positions(axes: Axes, numbers: Sequence[int]) -> None:
    shown = _thin_out(len(numbers), 12)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: str(numbers[round(value)])))


def _thin_out(length: int, most: int) -> list[int]:
    """Return evenly spaced indices of at most ``most`` of ``length`` things."""
    return list(range(0, length, -(-length // most))) if length else []


def _shorten(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
