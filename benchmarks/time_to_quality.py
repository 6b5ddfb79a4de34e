"""CPU time of a whole attack until it reaches a quality: ours against the paper's recipe, on the same updates.

    python benchmarks/time_to_quality.py --clients 100 101 --output benchmarks/results/time_to_quality

Clients of `femnist_like_10k` (not FEMNIST), FEMNIST network, E = 10, m = 5, N_c = 50; label counts are known (an upper
bound). PSNR on the way needs the truth, which the attack has not; the time to compute it is left out.
"""

import argparse
import datetime
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from paper_clients import FEMNIST, SEED
from reference_recipe import psnr_db

from attacker.attack import Progress
from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from fl_sim.options import build
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

DATA = Path(__file__).parents[2] / "shared" / "data"
RECIPE = LocalTraining(epochs=10, batch_size=5, learning_rate=0.004)
THRESHOLD_DB = 20.0
LOOKS = 40

ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "the paper's recipe": ("fedavg_leakage", {}),
    "feature span, quick": ("feature_span_quick", {"background": 1.0}),
    "feature span": ("feature_span", {"background": 1.0}),
}
COLOURS = {"the paper's recipe": "#c2571a", "feature span, quick": "#2f8a4c", "feature span": "#2563a8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The images after some steps.

    Attributes:
        step: Adam steps so far.
        cpu_seconds: Of the attack, without the looking.
        psnr_db: Mean over images, clipped to [0, 1].
        share: Of images above 20 dB.
    """

    step: int
    cpu_seconds: float
    psnr_db: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One attack on one client."""

    arm: str
    client: int
    looks: tuple[Look, ...]


def follow(arm: str, client: int) -> Curve:
    """Run an attack and look at it on the way."""
    name, options = ARMS[arm]
    images, labels = FEMNIST.private_batch(DATA, client)
    observation = FEMNIST.observe(images, labels, client, RECIPE, THREAT_MODELS["known_label_counts"])
    attack = build(ATTACKS[name], options, where="options")
    looks: list[Look] = []
    looking = 0.0
    started = time.process_time()

    def look(step: int, pixels: torch.Tensor) -> None:
        nonlocal looking
        arrived = time.process_time()
        decibels = psnr_db(pixels.detach().clamp(0, 1), images)
        share = (decibels > THRESHOLD_DB).double().mean().item()
        spent = arrived - started - looking
        looks.append(Look(step=step, cpu_seconds=spent, psnr_db=decibels.mean().item(), share=share))
        looking += time.process_time() - arrived

    def on_step(progress: Progress) -> None:
        if progress.images is not None and progress.step % max(1, progress.num_steps // LOOKS) == 0:
            look(progress.step, progress.images())

    found = attack(observation, generator=generator(SEED, "attack", client), on_step=on_step)
    look(looks[-1].step if looks else 0, found.images)
    return Curve(arm=arm, client=client, looks=tuple(looks))


def seconds_until(curve: Curve, psnr_db: float, share: float) -> float | None:
    """Return the CPU seconds after which both qualities are reached; ``None``: never."""
    return next((own.cpu_seconds for own in curve.looks if own.psnr_db >= psnr_db and own.share >= share), None)


def table(curves: Sequence[Curve]) -> str:
    """Return the results in words."""
    clients = sorted({curve.client for curve in curves})
    lines = [
        f"`python benchmarks/time_to_quality.py --clients {' '.join(map(str, clients))}`, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, one thread, torch {torch.__version__}. "
        f"`{FEMNIST.file}` (not FEMNIST), FEMNIST network, E = 10, m = 5, N_c = 50, eta = 0.004, seed {SEED}; "
        "threat model `known_label_counts` (an upper bound). CPU seconds of one process, of the same run.",
        "",
        "| attack | client | steps | CPU s | PSNR dB | above 20 dB | CPU s until the paper's recipe's end | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        last = curve.looks[-1]
        reference = [own for own in curves if own.client == curve.client and own.arm == "the paper's recipe"]
        reached, ratio = "–", "–"
        if reference and curve is not reference[0]:
            end = reference[0].looks[-1]
            seconds = seconds_until(curve, end.psnr_db, end.share)
            reached = "never" if seconds is None else f"{seconds:.1f}"
            ratio = "–" if seconds is None else f"1/{end.cpu_seconds / seconds:.0f}"
        lines.append(
            f"| {curve.arm} | {curve.client} | {last.step} | {last.cpu_seconds:.0f} | {last.psnr_db:.1f} "
            f"| {last.share:.0%} | {reached} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path, curves: Sequence[Curve]) -> None:
    """Draw PSNR over CPU time, on a logarithmic axis."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for curve in curves:
        seconds, decibels = [own.cpu_seconds for own in curve.looks], [own.psnr_db for own in curve.looks]
        axis.plot(seconds, decibels, color=COLOURS[curve.arm], linewidth=1.6)
        axis.plot(seconds[-1], decibels[-1], "o", color=COLOURS[curve.arm], markersize=4)
    for arm, colour in COLOURS.items():
        axis.plot([], [], color=colour, label=arm)
    axis.set_xscale("log")
    axis.set_xlabel("CPU seconds, one thread")
    axis.set_ylabel("PSNR, dB")
    axis.set_title("What a second of attack buys (E = 10, m = 5, 50 images)", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e4e4e4", linewidth=0.7)
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure every attack on every client, and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, required=True, help="without a suffix: .json, .md and .png are written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves: list[Curve] = []
    for client in arguments.clients:
        for arm in arguments.arms:
            curves.append(follow(arm, client))
            last = curves[-1].looks[-1]
            print(f"client {client}, {arm}: {last.psnr_db:.1f} dB after {last.cpu_seconds:.0f} CPU s", flush=True)
            arguments.output.with_suffix(".json").write_text(json.dumps([asdict(curve) for curve in curves], indent=1))
            arguments.output.with_suffix(".md").write_text(table(curves))
            draw(arguments.output.with_suffix(".png"), curves)
    print(table(curves))


if __name__ == "__main__":
    main()
