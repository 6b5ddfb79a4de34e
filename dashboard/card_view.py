"""One attacked update as a card: which reconstruction stands beside which private image, and what it is worth.

Images themselves are in `dashboard.pictures`; a card names them by their place in a sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacker.attack import Reconstruction
from attacker.attack_store import ResultKey
from attacker.report import wording
from attacker.results import ResultSummary
from attacker.scoring import Score
from dashboard.pictures import SheetView, sheet_view
from dashboard.run_reader import RunReader, Setting
from dashboard.run_view import ScoreView, ThreatView, score_view, threat_view
from fl_sim.errors import FlSimError, MissingDataError

_MOST_POINTS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """A private image and the reconstruction assigned to it, by their places in the sheets.

    ``None`` stands for what is not there, and for all that the attacker does not know.
    """

    private: int | None
    reconstruction: int | None
    label: str | None
    recovered_label: str | None
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    identified: bool | None = None
    is_recovered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """One attacked update.

    Attributes:
        attack: Label of the setting.
        key: Name of the result.
        server_round: The round.
        clients: One, or several whose mean was attacked.
        seed: Of the attack.
        pairs: The best first; in the attack's own order where there is no score.
        sheet: The reconstructions.
        private_sheet: The private images; ``None`` where they are not shown.
        private_id: The same for updates on the same private images; empty where nobody knows.
        score: In numbers.
        notice: Why there is no score.
    """

    attack: str
    key: str
    server_round: int
    clients: tuple[int, ...]
    seed: int
    pairs: tuple[PairView, ...]
    sheet: SheetView
    private_sheet: SheetView | None
    private_id: str
    score: ScoreView | None
    notice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemCard:
    """An attacked update that cannot be read."""

    key: str
    server_round: int
    clients: tuple[int, ...]
    seed: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineView:
    """What a guess without the update would score."""

    name: str
    mean_psnr_db: float
    mean_ssim: float
    mean_lpips: float | None
    iip: float | None
    recovered_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CountView:
    """Images of one class: those that a client holds, where the truth is shown, and those that the attack claims."""

    name: str
    true: int | None
    recovered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A step of an attack and the matching loss there."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultView:
    """All about one attacked update.

    Attributes:
        card: Its images.
        name: The attack.
        threat_model: What it was granted.
        labels_granted: Whether the labels were given and not recovered.
        options: Hyper-parameters in words.
        outcome: How it ended.
        remarks: What it has to say.
        seconds: Wall time.
        matching_loss: The final one.
        curve: The matching loss by step, thinned out.
        baselines: Guesses.
        iip: Image identifiability precision, where it was measured.
        counts: Label counts.
    """

    card: CardView
    name: str
    threat_model: ThreatView
    labels_granted: bool
    options: tuple[tuple[str, str], ...]
    outcome: str
    remarks: tuple[str, ...]
    seconds: float
    matching_loss: float | None
    curve: tuple[CurvePoint, ...]
    baselines: tuple[BaselineView, ...]
    iip: float | None
    counts: tuple[CountView, ...]


def round_cards(reader: RunReader, setting: Setting, server_round: int) -> tuple[CardView | ProblemCard, ...]:
    """Return a card for each attacked update of a round, by client and seed."""
    cards: list[CardView | ProblemCard] = []
    for key in setting.store.finished():
        if key.server_round != server_round:
            continue
        try:
            cards.append(card_view(reader, setting, key))
        except FlSimError as error:
            cards.append(
                ProblemCard(
                    key=key.folder_name,
                    server_round=key.server_round,
                    clients=key.clients,
                    seed=key.seed,
                    problem=str(error),
                )
            )
    return tuple(cards)


def card_view(reader: RunReader, setting: Setting, key: ResultKey) -> CardView:
    """Return the card of one result.

    Raises:
        RecordingError: If it is damaged.
    """
    return _card(reader, setting, reader.summary(setting, key), reader.reconstruction(setting, key))


def result_view(reader: RunReader, setting: Setting, key: ResultKey) -> ResultView:
    """Return all about one result.

    Raises:
        RecordingError: If it is damaged.
    """
    summary, found = reader.summary(setting, key), reader.reconstruction(setting, key)
    score = summary.score
    identifiability = None if score is None else score.identifiability
    return ResultView(
        card=_card(reader, setting, summary, found),
        name=setting.attack.name,
        threat_model=threat_view(setting.threat_model),
        labels_granted=setting.threat_model.label_counts,
        options=tuple((name, str(value)) for name, value in setting.attack.options.items()),
        outcome=str(summary.ending.outcome),
        remarks=summary.ending.remarks,
        seconds=summary.ending.seconds,
        matching_loss=summary.ending.matching_loss,
        curve=thin_curve(found.losses.tolist()),
        baselines=tuple(
            BaselineView(
                name=baseline.name,
                mean_psnr_db=baseline.mean_psnr_db,
                mean_ssim=baseline.mean_ssim,
                mean_lpips=baseline.mean_lpips,
                iip=baseline.iip,
                recovered_share=baseline.recovered_share,
            )
            for baseline in (() if score is None else score.baselines)
        ),
        iip=None if identifiability is None else identifiability.precision,
        counts=_counts(reader, score, found),
    )


def thin_curve(losses: Sequence[float]) -> tuple[CurvePoint, ...]:
    """Return a curve of a few hundred points: of each stretch of steps its last one."""
    stride = max(1, -(-len(losses) // _MOST_POINTS))
    steps = range(len(losses) - 1, -1, -stride)
    return tuple(CurvePoint(step=step + 1, loss=losses[step]) for step in reversed(steps))


def _card(reader: RunReader, setting: Setting, summary: ResultSummary, found: Reconstruction) -> CardView:
    key, names = summary.key, reader.manifest().dataset.class_names
    labels, private_sheet, private_id, notice = None, None, "", ""
    if reader.sees_truth:
        private_id = f"{reader.truth_key()}-{'+'.join(map(str, key.clients))}" if reader.truth_key() else ""
        try:
            private = reader.private_batch(key.clients)
            labels, private_sheet = private.labels, sheet_view(private.images)
        except MissingDataError as error:
            notice = f"The private images are not at hand: {error}"
        except FlSimError as error:
            notice = f"The private images cannot be shown: {error}"
        if summary.score is None and not notice:
            notice = "Not scored yet; `fl-sim report` scores what is there."
    score = summary.score if labels is not None and _fits(summary.score, len(labels), len(found.images)) else None
    return CardView(
        attack=setting.label,
        key=key.folder_name,
        server_round=key.server_round,
        clients=key.clients,
        seed=key.seed,
        pairs=_plain_pairs(found, names) if score is None else _scored_pairs(score, found, labels, names),
        sheet=sheet_view(found.images),
        private_sheet=private_sheet,
        private_id=private_id,
        score=None if summary.score is None else score_view(summary.score),
        notice=notice,
    )


def _fits(score: Score | None, num_private: int, num_images: int) -> bool:
    """Say whether a score is of these images; one that was edited or copied may not be."""
    return (
        score is not None
        and len(score.matching) == len(score.psnr_db) == len(score.ssim) == num_private
        and all(index < num_images for index in score.matching)
        and (score.lpips is None or len(score.lpips) == num_private)
    )


def _plain_pairs(found: Reconstruction, names: tuple[str, ...]) -> tuple[PairView, ...]:
    return tuple(
        PairView(private=None, reconstruction=index, label=None, recovered_label=wording.class_name(int(label), names))
        for index, label in enumerate(found.labels)
    )


def _scored_pairs(
    score: Score, found: Reconstruction, labels: torch.Tensor | None, names: tuple[str, ...]
) -> tuple[PairView, ...]:
    """Return a pair for each private image, best first; images without a reconstruction come last."""
    order = sorted(range(score.num_images), key=lambda index: -(score.psnr_db[index] or 0.0))
    identified = None if score.identifiability is None else score.identifiability.identified
    return tuple(
        PairView(
            private=index,
            reconstruction=matched if matched >= 0 else None,
            label=None if labels is None else wording.class_name(int(labels[index]), names),
            recovered_label=wording.class_name(int(found.labels[matched]), names) if matched >= 0 else None,
            psnr_db=score.psnr_db[index],
            ssim=score.ssim[index],
            lpips=None if score.lpips is None else score.lpips[index],
            identified=None if identified is None else identified[index],
            is_recovered=score.recovered[index],
        )
        for index in order
        for matched in [score.matching[index]]
    )


def _counts(reader: RunReader, score: Score | None, found: Reconstruction) -> tuple[CountView, ...]:
    spec = reader.manifest().dataset
    claimed = torch.bincount(found.labels.clamp(0, spec.num_classes - 1), minlength=spec.num_classes).tolist()
    true = [None] * spec.num_classes if score is None else list(score.label_counts)
    return tuple(
        CountView(name=wording.class_name(label, spec.class_names), true=held, recovered=count)
        for label, (held, count) in enumerate(zip(true, claimed, strict=False))
        if held or count
    )
