"""TensorBoard's event files of a run: ``tensorboard --logdir runs/<run>/tensorboard``, or ``--logdir runs`` for all.

    federation/                  accuracy and loss of the global model by round; the run's setting as text
    <setting>/all clients/       leakage by round: means over the clients (and seeds) that were attacked
    <setting>/client 3/          the same of one client; its images, private above reconstructed; matching loss by step
    guess, mean image/           what the trivial baseline scores, on the same axes

Every call writes the folder anew: a TensorBoard that has it open follows, because it drops what a newer file says again
(``purge_step``).
"""

import itertools
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.tensorboard.writer import SummaryWriter

from attacker.baselines import MEAN_IMAGE
from attacker.report.content import AttackResult, ReportContent
from attacker.report.wording import granted
from attacker.results import score_values
from fl_sim.events import Event, EventKind

_Value = TypeVar("_Value")
_Key = TypeVar("_Key")

SHOWN_SIDE = 84
"""Small images are enlarged to about this side, without smoothing: TensorBoard would blur them."""
MAX_IMAGES = 64
TILES_IN_A_ROW = 10
GAP = 2
MAX_CLIENTS = 32
"""Curves and images for each client up to so many; above, means only: TensorBoard lists every client as a run."""
MAX_CURVE_POINTS = 500


def write_event_files(folder: Path, content: ReportContent) -> None:
    """Write all that a run has, in place of what was there.

    Args:
        folder: Where the event files go.
        content: The run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with _writer(folder / "federation") as writer:
        writer.add_text("setting", _table(content.summary))
        for evaluation in content.evaluations:
            _add_evaluation(writer, evaluation.server_round, evaluation.accuracy, evaluation.loss)
    for setting, attacks in _grouped(content.attacks, lambda attack: attack.setting).items():
        with _writer(folder / setting / "all clients") as writer:
            _add_means(writer, attacks, _leakage)
        clients = _grouped(attacks, lambda attack: attack.whose)
        for whose, attacked in clients.items() if len(clients) <= MAX_CLIENTS else ():
            with _writer(folder / setting / whose) as writer:
                _add_client(writer, attacked)
    scored = [attack for attack in content.attacks if attack.score is not None]
    if scored:
        with _writer(folder / f"guess, {MEAN_IMAGE}") as writer:
            _add_means(writer, scored, _guess)


def follow_federation(events: Iterable[Event], folder: Path) -> Generator[Event]:
    """Yield the events of a running federation; each evaluation of the model is written as it comes.

    Args:
        events: What `fl_sim.runtime.run_federation` yields.
        folder: Where the event files go.
    """
    events = iter(events)
    first = next(events, None)
    if first is None:
        return
    resumed_at = first.server_round if first.kind is EventKind.FEDERATION_RESUMED else -1
    with _writer(folder / "federation", purge_step=resumed_at + 1) as writer:
        for event in itertools.chain((first,), events):
            if event.kind is EventKind.EVALUATED and event.accuracy is not None:
                _add_evaluation(writer, event.server_round, event.accuracy, event.loss)
                writer.flush()
            yield event


def _writer(folder: Path, purge_step: int = 0) -> closing[SummaryWriter]:
    return closing(SummaryWriter(str(folder), purge_step=purge_step))


def _add_evaluation(writer: SummaryWriter, server_round: int, accuracy: float, loss: float | None) -> None:
    writer.add_scalar("model/accuracy", accuracy, server_round)
    if loss is not None:
        writer.add_scalar("model/loss", loss, server_round)


def _add_means(
    writer: SummaryWriter, attacks: Sequence[AttackResult], read: Callable[[AttackResult], dict[str, float]]
) -> None:
    for server_round, attacked in _grouped(attacks, lambda attack: attack.server_round).items():
        for name, values in _columns(map(read, attacked)).items():
            writer.add_scalar(f"leakage/{name}", fmean(values), server_round)


def _add_client(writer: SummaryWriter, attacks: Sequence[AttackResult]) -> None:
    _add_means(writer, attacks, _leakage)
    threat_model = attacks[0].threat_model
    writer.add_text("threat model", f"{threat_model.name}; granted: {granted(threat_model)}")
    for attack in attacks:
        of_seed = f", seed {attack.seed}" if attack.seed else ""
        writer.add_image(f"images{of_seed}", _grid(attack), attack.server_round)
        stride = max(1, len(attack.losses) // MAX_CURVE_POINTS)
        for step in range(0, len(attack.losses), stride):
            tag = f"matching_loss/round {attack.server_round}{of_seed}"
            writer.add_scalar(tag, float(attack.losses[step]), step)


def _leakage(attack: AttackResult) -> dict[str, float]:
    if attack.score is None:
        return {"seconds": attack.seconds}
    guesses = tuple(baseline.name.replace(" ", "_") for baseline in attack.score.baselines)
    values = score_values(attack.score)
    return {
        "seconds": attack.seconds,
        **{name: value for name, value in values.items() if not name.startswith(guesses)},
    }


def _guess(attack: AttackResult) -> dict[str, float]:
    assert attack.score is not None
    prefix = MEAN_IMAGE.replace(" ", "_") + "_"
    values = score_values(attack.score)
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _grid(attack: AttackResult) -> Tensor:
    """Return (C, H, W) in [0, 1]: private images above their reconstructions, best first; or reconstructions alone."""
    if attack.score is None or attack.private_images is None:
        return _tiled(_shown(attack.reconstructions[:MAX_IMAGES]))
    score = attack.score
    order = sorted(range(score.num_images), key=lambda index: -(score.psnr_db[index] or 0.0))[:MAX_IMAGES]
    private = _shown(attack.private_images[order])
    rebuilt = torch.full_like(private, 0.5)  # an image that no reconstruction was assigned to stays grey
    for place, index in enumerate(order):
        if score.matching[index] >= 0:
            rebuilt[place] = _shown(attack.reconstructions[score.matching[index]].unsqueeze(0))[0]
    return _tiled(torch.cat([private, rebuilt], dim=2))


def _tiled(tiles: Tensor) -> Tensor:
    """Lay (N, C, h, w) out in rows of `TILES_IN_A_ROW`, with a grey gap after each; returns (C, H, W)."""
    framed = pad(tiles, (0, GAP, 0, GAP), value=0.5)
    columns = min(len(framed), TILES_IN_A_ROW)
    missing = -len(framed) % columns
    framed = torch.cat([framed, torch.full_like(framed[:1], 0.5).expand(missing, -1, -1, -1)])
    rows = framed.unflatten(0, (-1, columns))  # (rows, columns, C, h, w)
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _shown(images: Tensor) -> Tensor:
    floats = images.float() / 255.0 if images.dtype == torch.uint8 else images.float().nan_to_num(0.0, 0.0, 0.0)
    factor = max(1, round(SHOWN_SIDE / max(images.shape[-2:])))
    return interpolate(floats.clamp(0.0, 1.0), scale_factor=factor, mode="nearest")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)))


def _grouped(values: Iterable[_Value], key: Callable[[_Value], _Key]) -> dict[_Key, list[_Value]]:
    groups: dict[_Key, list[_Value]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns
