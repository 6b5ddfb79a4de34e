"""The report as one self-contained HTML file: no script, no request, nothing to install.

    content -> views (words, pictures, figures) -> template

Size is bounded by construction: of very many attacks the most revealing get a gallery, of very many images evenly
spaced ones are shown, and the page says so; the table of numbers is always complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from attacker.baselines import Baseline
from attacker.report import wording
from attacker.report.content import AttackResult, ReportContent
from attacker.report.figures import (
    Plot,
    plot_accuracy,
    plot_label_skew,
    plot_leaked_psnr,
    plot_loss,
    plot_matching_loss,
    plot_recovered_share,
)
from attacker.report.gallery import LabelCount, Pair, compare_label_counts, pair_up
from attacker.report.headline import Headline, rank, write_headline
from attacker.scoring import Score

MAX_GALLERIES = 40
MAX_PAIRS = 60
MAX_HEADLINE_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """A line of the table that holds the attack against guessing."""

    name: str
    is_attack: bool
    recovered: str
    psnr: str
    ssim: str
    lpips: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryView:
    """One attacked update as the template shows it."""

    anchor: str
    attack: AttackResult
    is_open: bool
    pairs: tuple[Pair, ...]
    num_images: int
    comparison: tuple[ComparisonRow, ...]
    label_counts: tuple[LabelCount, ...]
    loss_plot: Plot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One line of the table of all attacks; ``anchor`` leads to its gallery, where it has one."""

    attack: AttackResult
    anchor: str | None


def render(content: ReportContent) -> str:
    """Return the page.

    Args:
        content: Everything that stands in it; names may hold any characters, they are escaped.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(_read_asset("report.html.j2"))
    headline = write_headline(content)
    galleries = _show_galleries(content, headline)
    shown = {id(gallery.attack): gallery.anchor for gallery in galleries}
    rows = [AttackRow(attack=attack, anchor=shown.get(id(attack))) for attack in _in_order(content.attacks)]
    return template.render(
        content=content,
        style=Markup(_read_asset("report.css")),
        words=wording,
        headline=headline,
        headline_pairs=_headline_pairs(content, headline),
        galleries=galleries,
        rows=rows,
        run_plots=_plot_run(content),
        leakage_plots=_plot_leakage(content),
        skew_plot=_plot_skew(content),
    )


def _show_galleries(content: ReportContent, headline: Headline) -> tuple[GalleryView, ...]:
    chosen = _in_order(rank(content.attacks)[:MAX_GALLERIES])
    return tuple(
        GalleryView(
            anchor=f"attack-{number}",
            attack=attack,
            is_open=attack is headline.attack,
            pairs=pair_up(attack, content.class_names, most=MAX_PAIRS),
            num_images=(attack.reconstructions if attack.private_images is None else attack.private_images).shape[0],
            comparison=() if attack.score is None else _compare(attack.score),
            label_counts=() if attack.score is None else compare_label_counts(attack.score, content.class_names),
            loss_plot=plot_matching_loss(attack.losses, name=f"loss-{number}"),
        )
        for number, attack in enumerate(chosen, start=1)
    )


def _in_order(attacks: Sequence[AttackResult]) -> list[AttackResult]:
    return sorted(attacks, key=lambda attack: (attack.server_round, attack.client_id, attack.attack, attack.seed))


def _headline_pairs(content: ReportContent, headline: Headline) -> tuple[Pair, ...]:
    if headline.attack is None:
        return ()
    every_pair = pair_up(
        headline.attack, content.class_names, most=headline.attack.reconstructions.shape[0] + MAX_PAIRS
    )
    return tuple(pair for pair in every_pair if pair.reconstruction is not None)[:MAX_HEADLINE_PAIRS]


def _compare(score: Score) -> tuple[ComparisonRow, ...]:
    attack = ComparisonRow(
        name="the attack",
        is_attack=True,
        recovered=wording.percent(score.recovered_share),
        psnr=wording.decibel(score.mean_psnr_db),
        ssim=wording.fraction(score.mean_ssim),
        lpips=None if score.lpips is None else wording.fraction(score.mean_lpips),
    )
    return (attack, *(_compare_baseline(baseline, with_lpips=score.lpips is not None) for baseline in score.baselines))


def _compare_baseline(baseline: Baseline, *, with_lpips: bool) -> ComparisonRow:
    return ComparisonRow(
        name=f"guess: {baseline.name}",
        is_attack=False,
        recovered=wording.percent(baseline.recovered_share),
        psnr=wording.decibel(baseline.mean_psnr_db),
        ssim=wording.fraction(baseline.mean_ssim),
        lpips=wording.fraction(baseline.mean_lpips) if with_lpips else None,
    )


def _plot_run(content: ReportContent) -> tuple[Plot, ...]:
    if not content.evaluations:
        return ()
    return (plot_accuracy(content.evaluations), plot_loss(content.evaluations))


def _plot_leakage(content: ReportContent) -> tuple[Plot, ...]:
    if not any(attack.score for attack in content.attacks):
        return ()
    attacks = _in_order(content.attacks)
    return (plot_leaked_psnr(attacks), plot_recovered_share(attacks))


def _plot_skew(content: ReportContent) -> Plot | None:
    if content.label_skew is None or not content.label_skew.numel():
        return None
    attacked = sorted({attack.client_id for attack in content.attacks})
    return plot_label_skew(content.label_skew, content.class_names, attacked)


def _read_asset(name: str) -> str:
    return files("attacker.report").joinpath("templates", name).read_text(encoding="utf-8")
