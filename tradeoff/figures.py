"""The trade-off plots: accuracy against leakage, one point for each arm, the front of what nothing else beats."""

from collections.abc import Sequence
from dataclasses import dataclass

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from attacker.report.figures import LegendEntry, Plot
from attacker.report.themed_svg import MUTED, SERIES, draw_svg
from tradeoff.outcomes import Outcome

HEIGHT = 320
PLAIN_COLOURS = ("#2a76b5", "#c2571a", "#2f8f5b", "#b03a6b", "#7658b5", "#8a7a12")
"""For the picture outside the page: those of the page in the light."""
PLAIN_MUTED = "#676c74"
LEAST_RANGE = 0.05
"""Of accuracy: what differs by less than this is not to look far apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """How leakage is measured on an axis."""

    name: str
    title: str
    axis: str
    is_share: bool = False


_MEASURES = (
    _Measure(name="psnr_db", title="Accuracy against PSNR", axis="mean PSNR of the strongest attack, dB"),
    _Measure(
        name="recovered_share", title="Accuracy against recovered images", axis="images it recovers", is_share=True
    ),
)


def tradeoff_plots(found: Sequence[Outcome]) -> tuple[Plot, ...]:
    """Draw the plots for the page; none where nothing was scored."""
    if not _points(found, _MEASURES[0]):
        return ()
    entries = [LegendEntry(key=f"dot series-{1 + i % len(SERIES)}", name=f) for i, f in enumerate(_families(found))]
    entries.append(LegendEntry(key="dashed", name="nothing else beats these"))
    entries.append(LegendEntry(key="dotted", name="mean image, without an update"))
    return tuple(_plot(found, measure, tuple(entries)) for measure in _MEASURES)


def _plot(found: Sequence[Outcome], measure: _Measure, legend: tuple[LegendEntry, ...]) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _spread(figure, axes, _draw(axes, found, measure, SERIES, MUTED), MUTED)

    svg = draw_svg(
        draw,
        name=f"tradeoff-{measure.name.replace('_', '-')}",
        height=HEIGHT,
        description=f"Test accuracy against {measure.axis}, for each defense and strength.",
    )
    return Plot(title=measure.title, svg=svg, legend=legend)


def draw_picture(found: Sequence[Outcome]) -> Figure:
    """Draw the same as a picture of its own, with a legend inside."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    labels = _draw(axes, found, _MEASURES[0], PLAIN_COLOURS, PLAIN_MUTED)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _spread(figure, axes, labels, PLAIN_MUTED)
    return figure


def _draw(axes: Axes, found: Sequence[Outcome], measure: _Measure, colours: Sequence[str], muted: str) -> list[Text]:
    """Draw everything, and return the strengths, each on its point."""
    points, families = _points(found, measure), _families(found)
    for position, family in enumerate(families):
        own = [(x, y) for outcome, x, y in points if outcome.arm.family == family]
        colour = colours[position % len(colours)]
        axes.plot(*zip(*own, strict=True), color=colour, alpha=0.35, linewidth=1.0)
        # Arms of no effect lie on the one without a defense, which is a ring around them.
        size, fill = (12, "none") if position == 0 else (6, "full")
        axes.plot(
            *zip(*own, strict=True), color=colour, linestyle="none", marker="o", label=family, ms=size, fillstyle=fill
        )
    labels: list[Text] = []
    for outcome, x, y in points:
        leaked, cost = outcome.worst, outcome.training.accuracy
        errors = (cost and cost.standard_error, leaked and leaked.values[measure.name].standard_error)
        axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], color=muted, linewidth=0.8, zorder=0)
        if outcome.arm.strength is not None:
            labels.append(axes.text(x, y, f"{outcome.arm.strength:g}", fontsize=8, color=muted))
    front = sorted((x, y) for outcome, x, y in points if outcome.undominated)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=muted, linestyle="--", linewidth=1.0, zorder=0)
    guess = points[0][0].worst
    baseline = f"mean_image_{measure.name}"
    if guess is not None and baseline in guess.values:
        axes.axhline(guess.values[baseline].mean, color=muted, linestyle=":", linewidth=1.2, zorder=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("test accuracy")
    axes.set_ylabel(measure.axis)
    axes.margins(0.12)
    left, right = axes.get_xlim()
    missing = max(0.0, LEAST_RANGE - (right - left)) / 2
    axes.set_xlim(left - missing, right + missing)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if measure.is_share:
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return labels


def _spread(figure: Figure, axes: Axes, labels: list[Text], colour: str) -> None:
    """Move labels away from points and from each other, once everything else has its place."""
    if not labels:
        return
    figure.draw_without_rendering()
    adjust_text(
        labels,
        ax=axes,
        iter_lim=500,  # and no limit by time, so that the picture is the same each time
        expand=(1.6, 1.9),
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4},
    )


def _points(found: Sequence[Outcome], measure: _Measure) -> list[tuple[Outcome, float, float]]:
    return [
        (outcome, outcome.training.accuracy.mean, outcome.worst.values[measure.name].mean)
        for outcome in found
        if outcome.training.accuracy is not None and outcome.worst is not None
    ]


def _families(found: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.arm.family for outcome, _, _ in _points(found, _MEASURES[0])))
