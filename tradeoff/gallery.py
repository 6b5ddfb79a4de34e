"""The same private images under each defense: what the strongest attack makes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attacker.matching import UNMATCHED
from attacker.results import Result, read_results
from attacker.truth import read_truth
from tradeoff.campaign import ArmRun
from tradeoff.outcomes import Outcome
from tradeoff.study import Study

NUM_IMAGES = 8
_CELL, _GAP, _TEXT = 84, 6, 13
_INK, _MUTED = "#1f2328", "#676c74"


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryRow:
    """One line of pictures.

    Attributes:
        title: The arm, or what the private images are.
        images: (C, H, W) each, in [0, 1]; ``None`` where an attack claims nothing.
        psnr_db: Of each; ``None`` for the private images themselves.
    """

    title: str
    images: tuple[Tensor | None, ...]
    psnr_db: tuple[float | None, ...]


def gallery(study: Study, found: Sequence[Outcome], runs: Sequence[ArmRun]) -> tuple[GalleryRow, ...]:
    """Return the private images and a row for each arm; nothing where there is no scored result to start from.

    Of the first attacked update those images are shown that leak most without a defense.

    Args:
        study: What was compared.
        found: Its outcomes.
        runs: All its arms.
    """
    seed = study.seeds[0]
    chosen = [_strongest(outcome, [run for run in runs if run.seed == seed]) for outcome in found]
    first = chosen[0]
    if first is None or first[0].score is None:
        return ()
    result, run = first
    order = torch.tensor([-1.0 if value is None else value for value in result.score.psnr_db])  # type: ignore[union-attr]
    shown = order.argsort(descending=True, stable=True)[:NUM_IMAGES].tolist()
    private = read_truth(run.run.folder).private_batch(*result.key.clients).images
    who = f"client {result.key.clients_text}, round {result.key.server_round}"
    rows = [GalleryRow(title=f"private, {who}", images=tuple(private[i] for i in shown), psnr_db=(None,) * len(shown))]
    for outcome, pair in zip(found, chosen, strict=True):
        if pair is not None and pair[0].score is not None:
            rows.append(_row(outcome.arm.label, pair[0], shown))
    return tuple(rows)


def draw_gallery(rows: Sequence[GalleryRow]) -> Image.Image:
    """Return the rows as one picture, from top to bottom, with their titles and the PSNR of each reconstruction."""
    font = ImageFont.load_default(_TEXT)
    columns = max(len(row.images) for row in rows)
    margin = math.ceil(max(font.getlength(row.title) for row in rows)) + 2 * _GAP
    height = _CELL + _TEXT + 2 * _GAP
    sheet = Image.new("RGB", (margin + columns * (_CELL + _GAP), len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        top = _GAP + line * height
        draw.text((margin - _GAP, top + _CELL // 2), row.title, fill=_INK, font=font, anchor="rm")
        for column, (image, psnr) in enumerate(zip(row.images, row.psnr_db, strict=True)):
            left = margin + column * (_CELL + _GAP)
            if image is not None:
                sheet.paste(_picture(image), (left, top))
            if psnr is not None:
                draw.text((left + _CELL // 2, top + _CELL), f"{psnr:.1f} dB", fill=_MUTED, font=font, anchor="ma")
    return sheet


def _strongest(outcome: Outcome, runs: Sequence[ArmRun]) -> tuple[Result, ArmRun] | None:
    """Return the first update's result of the arm's strongest attack."""
    worst = outcome.worst
    for run in runs:
        if run.arm == outcome.arm and worst is not None:
            fitting = [result for result in read_results(run.run) if result.setting.label == worst.setting]
            if fitting:
                return min(fitting, key=lambda result: (result.key.server_round, result.key.clients)), run
    return None


def _row(title: str, result: Result, shown: Sequence[int]) -> GalleryRow:
    score = result.score
    assert score is not None
    matched = [score.matching[index] for index in shown]
    return GalleryRow(
        title=title,
        images=tuple(None if index == UNMATCHED else result.reconstruction.images[index] for index in matched),
        psnr_db=tuple(score.psnr_db[index] for index in shown),
    )


def _picture(image: Tensor) -> Image.Image:
    data = (image.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    channels = data.expand(3, -1, -1) if data.shape[0] == 1 else data
    smooth = Image.Resampling.NEAREST if max(image.shape[1:]) <= _CELL // 2 else Image.Resampling.LANCZOS
    return Image.fromarray(channels.permute(1, 2, 0).numpy()).resize((_CELL, _CELL), smooth)
