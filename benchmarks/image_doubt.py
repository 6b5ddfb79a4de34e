"""Whether an attacker knows which of its images to believe: PSNR by doubt, over the attacks of a run.

    python benchmarks/image_doubt.py RUN --attack feature_span --output benchmarks/results/image_doubt.md

The doubt (`attacker.image_doubt`) is told from the update and the reconstruction alone. PSNR and the assignment of
reconstructions to private images come from the scores of the run, and are used only to see what the doubt is worth.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from attacker.attack_worker import observe_update
from attacker.image_doubt import doubts
from attacker.image_span import ImageSpan
from attacker.inversion_problem import inversion_problem
from attacker.recipes.feature_span import FeatureSpan
from attacker.results import Result, read_results
from attacker.scoring import Score
from fl_sim.run_store import RunStore, open_run

Scored: TypeAlias = tuple[Result, Score]

EDGES = (0.0, 0.1, 0.2, 0.5, 0.8, float("inf"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the attacks of a run, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with scored attacks")
    parser.add_argument("--attack", default="feature_span")
    parser.add_argument("--output", type=Path, default=Path("image_doubt.md"))
    options = parser.parse_args(arguments)
    run = open_run(options.run)
    by_setting: dict[str, list[Scored]] = {}
    for result in read_results(run):
        if result.setting.name == options.attack and result.score is not None:
            by_setting.setdefault(result.setting.label, []).append((result, result.score))
    if not by_setting:
        parser.error(f"{options.run} holds no scored attack {options.attack!r}: run fl-sim attack on it")
    text = "\n".join(section(run, scored) for scored in by_setting.values())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(text)


def section(run: RunStore, scored: Sequence[Scored]) -> str:
    """Return the Markdown of one attack setting."""
    doubt = torch.cat([doubts_of(run, result, len(score.label_counts)) for result, score in scored])
    decibels = torch.cat([psnr_of(score) for _, score in scored])
    is_matched = decibels.isfinite()
    first, score = scored[0]
    return table(
        doubt[is_matched],
        decibels[is_matched],
        title=f"`{first.setting.name}`, `{first.setting.threat_model}`, {len(scored)} attacks",
        threshold_db=score.threshold_db,
    )


def doubts_of(run: RunStore, result: Result, num_classes: int) -> Tensor:
    """Return the doubt (N,) of each image of a reconstruction.

    Raises:
        ValueError: If the update tells no span.
    """
    observation = observe_update(
        run.recording.folder,
        result.key.server_round,
        result.key.clients,
        "known_label_counts",  # the labels do not enter: these are those of the reconstruction
        label_counts=torch.bincount(result.reconstruction.labels, minlength=num_classes)[None],
    )
    problem = inversion_problem(observation, "automatic", torch.Generator())
    span = FeatureSpan(**result.setting.options).span(problem)
    if not isinstance(span, ImageSpan):
        raise ValueError(f"no doubt without a span: {span.reason}")
    with torch.no_grad():
        return doubts(span.features(result.reconstruction.images.to(problem.mean)), basis=span.basis)


def psnr_of(score: Score) -> Tensor:
    """Return the PSNR (N,), dB, of each reconstruction with the private image that it is assigned to; NaN for none."""
    decibels = torch.full((score.num_images,), float("nan"), dtype=torch.float64)
    for image, value in zip(score.matching, score.psnr_db, strict=True):
        if value is not None:
            decibels[image] = value
    return decibels


def table(doubt: Tensor, decibels: Tensor, *, title: str, threshold_db: float) -> str:
    """Return the Markdown: images by doubt."""
    lines = [
        f"{title}, {len(doubt)} images; rank correlation of doubt and PSNR "
        f"{np.asarray(spearmanr(doubt.numpy(), decibels.numpy()))[0]:.2f}. PSNR by the assignment of highest total.",
        "",
        f"| doubt | images | PSNR, dB, mean | lowest | above {threshold_db:g} dB | not above |",
        "|---|---|---|---|---|---|",
    ]
    for low, high in pairwise(EDGES):
        own = decibels[(doubt >= low) & (doubt < high)]
        name = f"{low:g} to {high:g}" if high < EDGES[-1] else f"{low:g} and more"
        share = f"{(own > threshold_db).double().mean():.0%}" if len(own) else "–"
        numbers = (f"{own.mean():.1f}", f"{own.min():.1f}") if len(own) else ("–", "–")
        lines.append(
            f"| {name} | {len(own)} | {numbers[0]} | {numbers[1]} | {share} | {int((own <= threshold_db).sum())} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
