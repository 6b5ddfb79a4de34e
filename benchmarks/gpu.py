"""Table 1's FEMNIST column on one device, as many clients as fit into some minutes: seconds, memory and PSNR.

    python benchmarks/gpu.py --data-folder ../shared/data --minutes 8 --device cuda --output gpu.md

Needs torch, numpy and scipy, and the packages `attacker`, `clients` and `fl_sim` on the path: no Flower, no Ray, no
pydantic. Rows: E and m of the paper's Table 1, eta = 0.004, N_c = 50, random batches, label counts known (an upper
bound). Attacks: the paper's recipe (`ours_prior`) and this project's (`feature_span`), 400 and 300 steps unless
`--steps` says otherwise. Client by client, each with all rows and attacks, until the time is up; an attack that is
under way then is given up and not counted.

seconds a client  wall time of the whole attack;  seconds a step  the same over its optimisation steps
memory            the largest that torch held on the device during an attack (the process, on a CPU)

`femnist_like_10k.npz` are EMNIST characters made to look like FEMNIST, without writers: not the paper's data.
"""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from femnist_client import FILE, SEED, observe, private_batch
from torch import Tensor

from attacker.attack import Progress
from attacker.matching import match
from attacker.metrics.psnr import psnr_db
from attacker.observation import Observation
from attacker.placement import on_device
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.threat_models import KNOWN_LABEL_COUNTS
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

ROWS = ((1, 5), (5, 5), (10, 10), (10, 5), (10, 1))
THRESHOLD_DB = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One attack on one client."""

    epochs: int
    batch_size: int
    method: str
    client: int
    seconds: float
    steps: int
    memory_bytes: int
    psnr_db: float
    recovered_share: float


class TimeIsUpError(Exception):
    """Raised out of an attack that would run past the minutes."""


def row(text: str) -> tuple[int, int]:
    """Read E and m of an option such as ``10,5``."""
    numbers = text.split(",")
    if len(numbers) != 2 or not all(number.isdigit() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"expected E,m, for instance 10,5, got {text!r}")
    return int(numbers[0]), int(numbers[1])


def attacks(steps: int | None) -> dict[str, FedAvgLeakage | FeatureSpan]:
    """Return the two recipes, shortened where a number of steps is given."""
    if steps is None:
        return {"ours_prior": FedAvgLeakage(), "feature_span": FeatureSpan()}
    return {
        "ours_prior": FedAvgLeakage(steps=steps),
        "feature_span": FeatureSpan(steps=steps, round_steps=max(1, steps // 6)),
    }


def measure(
    attack: FedAvgLeakage | FeatureSpan, observation: Observation, images: Tensor, device: torch.device, end: float
) -> tuple[float, int, int, Tensor]:
    """Attack, and return seconds, steps, bytes and the PSNR of each image in dB.

    Raises:
        TimeIsUpError: If ``end``, of the monotonic clock, passes.
    """
    steps = 0

    def count(progress: Progress) -> None:
        nonlocal steps
        steps += 1
        if time.monotonic() > end:
            raise TimeIsUpError

    seen = on_device(observation, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.monotonic()
    reconstruction = attack(seen, generator=generator(SEED, "attack"), on_step=count)
    found = reconstruction.images.cpu()  # waits for the device
    seconds = time.monotonic() - started
    return seconds, steps, memory(device), psnr_db(found[match(images, found)], images)


def memory(device: torch.device) -> int:
    """Return the largest number of bytes held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(found: Sequence[Measurement]) -> str:
    """Return Markdown, one line for each row and attack: means over clients."""
    lines = [
        "| E, m | attack | clients | seconds a client | seconds a step | memory, MiB | PSNR, dB | above 20 dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for epochs, batch_size, method in dict.fromkeys((each.epochs, each.batch_size, each.method) for each in found):
        own = [each for each in found if (each.epochs, each.batch_size, each.method) == (epochs, batch_size, method)]
        lines.append(
            f"| {epochs}, {batch_size} | {method} | {len(own)} | {fmean(each.seconds for each in own):.1f} "
            f"| {fmean(each.seconds / each.steps for each in own):.4f} "
            f"| {max(each.memory_bytes for each in own) / 2**20:.0f} | {fmean(each.psnr_db for each in own):.1f} "
            f"| {fmean(each.recovered_share for each in own):.0%} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure until the time is up, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clients", type=int, nargs="+", default=list(range(100, 150)))
    parser.add_argument("--images", type=int, default=50, help="of each client")
    parser.add_argument("--rows", type=row, nargs="+", default=ROWS, metavar="E,m")
    parser.add_argument("--steps", type=int, help="of each attack; default: its own")
    parser.add_argument("--output", type=Path, help="Markdown; written after each attack")
    options = parser.parse_args(arguments)
    path = options.data_folder / FILE
    if not path.exists():
        raise SystemExit(f"error: {path} does not exist; name its folder with --data-folder")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    heading = f"{name}, torch {torch.__version__}; `femnist_like_10k`, N_c = {options.images}, label counts known\n"
    end = time.monotonic() + 60 * options.minutes
    found: list[Measurement] = []
    for client in options.clients:
        images, labels = private_batch(path, client, options.images)
        for epochs, batch_size in options.rows:
            recipe = LocalTraining(epochs=epochs, batch_size=batch_size, learning_rate=0.004)
            observation = observe(images, labels, client, recipe, KNOWN_LABEL_COUNTS)
            for method, attack in attacks(options.steps).items():
                try:
                    seconds, steps, held, decibels = measure(attack, observation, images, device, end)
                except TimeIsUpError:
                    print(f"time is up in client {client}, E = {epochs}, m = {batch_size}, {method}")
                    print(f"{heading}\n{table(found)}")
                    return
                found.append(
                    Measurement(
                        epochs=epochs,
                        batch_size=batch_size,
                        method=method,
                        client=client,
                        seconds=seconds,
                        steps=steps,
                        memory_bytes=held,
                        psnr_db=float(decibels.mean()),
                        recovered_share=float((decibels > THRESHOLD_DB).double().mean()),
                    )
                )
                if options.output:
                    options.output.write_text(f"{heading}\n{table(found)}\n", encoding="utf-8")
    print(f"{heading}\n{table(found)}")


if __name__ == "__main__":
    main()
