"""The picture: exposure by round, one line a client, and by client beside what explains it best."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, PercentFormatter

from attacker.exposure.exposures import ClientExposure, Exposure
from attacker.exposure.rank_correlation import RankCorrelation

_COLOURS = ("#2a76b5", "#c2571a", "#2f8f5b")
_MUTED = "#676c74"
_LINE = "#c9ccd1"
_NUM_NAMED = 3
"""Most exposed clients that get a colour and a name; the others are grey lines."""


def draw_exposure(found: Exposure, *, title: str) -> Figure:
    """Draw exposure along training, and by the trait of the strongest rank correlation."""
    figure = Figure(figsize=(10.4, 4.3), layout="constrained")
    by_round, by_trait = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    _draw_rounds(by_round, found)
    _draw_trait(by_trait, found)
    for axes in (by_round, by_trait):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.axhline(0.0, color=_MUTED, linestyle=":", linewidth=1.2, zorder=0)
    return figure


def _draw_rounds(axes: Axes, found: Exposure) -> None:
    numbers = [one.server_round for one in found.rounds]
    for position, client in reversed(list(enumerate(found.clients))):
        named = position < _NUM_NAMED
        axes.plot(
            *zip(*sorted(client.by_round.items()), strict=True),
            color=_COLOURS[position] if named else _LINE,
            linewidth=1.6 if named else 1.0,
            marker="o",
            markersize=4 if named else 2.5,
            label=_name(client) if named else None,
            zorder=2 if named else 1,
        )
    means = [one.values["exposure_db"] for one in found.rounds]
    axes.errorbar(
        numbers,
        [mean.mean for mean in means],
        yerr=[mean.standard_error or 0.0 for mean in means],
        color="#15181c",
        linewidth=2.2,
        capsize=3,
        label="mean over clients",
        zorder=3,
    )
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.set_xlabel("round")
    axes.set_ylabel("PSNR above the mean image, dB")
    handles, _ = axes.get_legend_handles_labels()
    accuracies = [(one.server_round, one.accuracy) for one in found.rounds if one.accuracy is not None]
    if len(accuracies) > 1:
        handles.insert(0, _draw_accuracy(axes, accuracies))
    # The mean first, then the clients as in the table: they were drawn the other way round, so as to lie on top.
    axes.legend(
        handles=handles[::-1], frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3
    )


def _draw_accuracy(axes: Axes, accuracies: Sequence[tuple[int, float]]) -> Line2D:
    other = axes.twinx()
    (line,) = other.plot(
        *zip(*accuracies, strict=True), color=_MUTED, linestyle="--", linewidth=1.2, label="test accuracy (right)"
    )
    other.set_ylim(0, 1)
    other.yaxis.set_major_formatter(PercentFormatter(1.0))
    other.spines[["top", "right"]].set_visible(False)
    other.tick_params(colors=_MUTED)
    return line


def _draw_trait(axes: Axes, found: Exposure) -> None:
    trait, correlation = _strongest(found)
    points = [(client.traits.named()[trait], client) for client in found.clients]
    for position, (value, client) in enumerate(points):
        if value is None:
            continue
        mean = client.values["exposure_db"]
        colour = _COLOURS[position] if position < _NUM_NAMED else _MUTED
        # No error bars over rounds: what changes from round to round is the left half of the picture.
        axes.plot(value, mean.mean, color=colour, linestyle="none", marker="o", markersize=5)
        if position < _NUM_NAMED:
            axes.annotate(
                str(client.client_id), (value, mean.mean), (6, 4), textcoords="offset points", color=colour, fontsize=9
            )
    axes.set_xlabel(trait)
    axes.set_ylabel("mean over rounds, dB")
    axes.set_title(
        "no rank correlation can be told" if correlation is None else correlation_text(correlation), fontsize=9
    )
    axes.margins(0.1)


def correlation_text(correlation: RankCorrelation) -> str:
    """Return a rank correlation as a person reads it."""
    p = "p < 0.001" if correlation.p_value < 0.001 else f"p = {correlation.p_value:.2g}"
    return f"rank correlation {correlation.rho:+.2f}, {p} ({correlation.number} clients)"


def _strongest(found: Exposure) -> tuple[str, RankCorrelation | None]:
    def strength(item: tuple[str, RankCorrelation | None]) -> float:
        return -1.0 if item[1] is None else abs(item[1].rho)

    return max(found.explanations.items(), key=strength)


def _name(client: ClientExposure) -> str:
    traits = client.traits
    return f"client {client.client_id}: {traits.num_examples} images of {traits.num_labels} classes"
