"""The study as one self-contained HTML page."""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attacker.report.pictures import Picture, draw_picture
from attacker.report.wording import decibel
from tradeoff.figures import tradeoff_plots
from tradeoff.gallery import GalleryRow
from tradeoff.outcomes import Outcome
from tradeoff.rendering import cells, header, not_followed, reading, setting
from tradeoff.study import Study


def render(study: Study, found: Sequence[Outcome], rows: Sequence[GalleryRow], *, command: str) -> str:
    """Return the page.

    Args:
        study: What was compared.
        found: Its outcomes; the first one is without defense.
        rows: Its gallery.
        command: What made it.
    """
    environment = Environment(
        loader=PackageLoader("tradeoff"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        name=study.experiment.name,
        headline=headline(found),
        setting=setting(study),
        style=Markup(resources.files("attacker.report").joinpath("templates/report.css").read_text(encoding="utf-8")),
        plots=tradeoff_plots(found),
        attacks=[header(leakage) for leakage in found[0].leakages],
        table=[(cells(outcome, study.published_for(outcome.arm)), outcome.undominated) for outcome in found],
        gallery=[(row.title, _pictures(row)) for row in rows],
        reading=reading(study),
        not_followed=not_followed(found),
        command=command,
    )


def _pictures(row: GalleryRow) -> list[tuple[Picture | None, str]]:
    return [
        (None if image is None else draw_picture(image), "" if psnr is None else decibel(psnr))
        for image, psnr in zip(row.images, row.psnr_db, strict=True)
    ]


def headline(found: Sequence[Outcome]) -> str:
    """Return what the study says in a sentence."""
    plain = found[0].worst
    guess = None if plain is None else plain.values.get("mean_image_psnr_db")
    if plain is None or guess is None:
        return "Nothing was scored yet."
    reached, share = plain.values["psnr_db"].mean, plain.values["recovered_share"].mean
    if reached <= guess.mean:
        return (
            f"Even without a defense the attacks reach {reached:.1f} dB, no more than the {guess.mean:.1f} dB of "
            "guessing the mean image: such attacks say nothing about defenses."
        )
    sentence = f"Without a defense the strongest attack reaches {reached:.1f} dB and recovers {share:.0%} of the images"
    cheapest = _cheapest_that_stops(found[1:], guess.mean)
    if cheapest is None:
        return f"{sentence}; no defense here brings it down to the {guess.mean:.1f} dB of guessing the mean image."
    loss = cheapest.training.accuracy_loss
    cost = f"for {loss.mean:.1%} of accuracy" if loss is not None and loss.mean >= 0.0005 else "at no loss of accuracy"
    return f"{sentence}; {cheapest.arm.label} brings it down to guessing, {cost}."


def _cheapest_that_stops(found: Sequence[Outcome], guess_db: float) -> Outcome | None:
    """Return the arm of the highest accuracy among those whose strongest attack is no better than a guess."""
    stopped = [
        (outcome.training.accuracy.mean, outcome)
        for outcome in found
        if outcome.worst is not None
        and outcome.training.accuracy is not None
        and outcome.worst.values["psnr_db"].mean <= guess_db
    ]
    return max(stopped, key=lambda pair: pair[0], default=(0.0, None))[1]
