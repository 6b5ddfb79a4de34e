"""Table 1's FEMNIST column on one device, as many clients as fit into some minutes: seconds, memory and PSNR.

    python benchmarks/gpu.py --data-folder ../shared/data --minutes 8 --device cuda --output gpu.md
    python benchmarks/gpu.py --data-folder ../shared/data --device cuda --compare 1 8 32

Needs torch, numpy and scipy, and the packages `attacker`, `clients` and `fl_sim` on the path: no Flower, no Ray, no
pydantic. Rows: E and m of the paper's Table 1, eta = 0.004, N_c = 50, random batches, label counts known (an upper
bound). Attacks: the paper's recipe (`ours_prior`) and this project's (`feature_span`), 400 and 300 steps unless
`--steps` says otherwise. Some clients are attacked at once (`--at-once`, 32 on a GPU), each such group with all rows
and attacks, group by group until the time is up; an attack that is under way then is given up and not counted.

seconds a client  wall time of the whole attack, divided by the clients at once
seconds a step    wall time of one optimisation step of all clients at once
memory            the largest that torch held on the device during an attack (the process, on a CPU)

With `--compare` the first clients are attacked for some steps in groups of the given sizes instead, for E = 10, m = 5
unless `--rows` says otherwise: what a step of so many clients at once costs, as a multiple of the first size. The bar
of this project: 32 clients at once at most 4 times one client. The engine alone is a step of the simulation with its
derivative, without priors, optimiser and whatever else an attack does; on a GPU also as a CUDA graph, which starts its
many small operations as a whole.

`femnist_like_10k.npz` are EMNIST characters made to look like FEMNIST, without writers: not the paper's data.
"""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from paper_clients import FEMNIST, SEED
from torch import Tensor

from attacker.attack import Progress
from attacker.inversion_problem import inversion_problem
from attacker.local_steps import Simulation
from attacker.many_local_updates import simulate_many_local_updates
from attacker.matching import match
from attacker.metrics.psnr import psnr_db
from attacker.observation import Observation
from attacker.placement import allow_tf32, on_device
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.threat_models import KNOWN_LABEL_COUNTS
from attacker.together import attack_together
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

ROWS = ((1, 5), (5, 5), (10, 10), (10, 5), (10, 1))
THRESHOLD_DB = 20.0
AT_ONCE = {"cuda": 32}
COMPARED_STEPS = 12
_PREPARING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One attack on one client; seconds of a step and memory are those of all that were attacked at once."""

    epochs: int
    batch_size: int
    method: str
    client: int
    seconds: float
    seconds_a_step: float
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


def compared(steps: int) -> dict[str, FedAvgLeakage | FeatureSpan]:
    """Return what a step is compared of: all steps of the paper's recipe are alike, and those of our coarse part."""
    return {"ours_prior": FedAvgLeakage(steps=steps), "feature_span": FeatureSpan(steps=steps, rounds=0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """One client: its images and what the server sees of them."""

    client: int
    images: Tensor
    observation: Observation


def privates(options: argparse.Namespace, clients: Sequence[int], epochs: int, batch_size: int) -> list[Private]:
    """Train some clients and return them."""
    recipe = LocalTraining(epochs=epochs, batch_size=batch_size, learning_rate=0.004)
    found: list[Private] = []
    for client in clients:
        images, labels = FEMNIST.private_batch(options.data_folder, client, options.images)
        observation = FEMNIST.observe(images, labels, client, recipe, KNOWN_LABEL_COUNTS)
        found.append(Private(client=client, images=images, observation=observation))
    return found


def measure(
    attack: FedAvgLeakage | FeatureSpan, group: Sequence[Private], device: torch.device, end: float
) -> list[tuple[float, float, int, Tensor]]:
    """Attack at once; return seconds, seconds a step and bytes of all, and the PSNR of each image in dB, by client.

    Raises:
        TimeIsUpError: If ``end``, of the monotonic clock, passes.
    """
    steps = 0

    def count(progress: Progress) -> None:
        nonlocal steps
        steps += 1
        if time.monotonic() > end:
            raise TimeIsUpError

    seen = [on_device(private.observation, device) for private in group]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.monotonic()
    reconstructions = attack_together(
        attack,
        seen,
        generators=[generator(SEED, "attack") for _ in seen],
        at_once=len(seen),
        on_step=count,
    )
    seconds = time.monotonic() - started
    held, num_steps = memory(device), steps / len(seen)
    return [
        (
            seconds / len(seen),
            seconds / num_steps,
            held,
            psnr_db(found.images[match(own.images, found.images)], own.images),
        )
        for own, found in zip(group, reconstructions, strict=True)
    ]


def seconds_a_step(
    attack: FedAvgLeakage | FeatureSpan, group: Sequence[Private], device: torch.device
) -> tuple[float, str]:
    """Return the mean wall time of a step of all clients at once, and how the attack says it was computed."""
    ends: list[float] = []
    told = 0

    def note(progress: Progress) -> None:
        nonlocal told
        told += 1
        # The first steps prepare and measure. Within a search the host does not wait for the device, so only here.
        if told in (_PREPARING * len(group), progress.num_steps * len(group)):
            wait_for(device)
            ends.append(time.perf_counter())

    seen = [on_device(private.observation, device) for private in group]
    draws = [generator(SEED, "attack") for _ in seen]
    found = attack_together(attack, seen, generators=draws, at_once=len(seen), on_step=note)
    remarks = [remark for remark in found[0].remarks if "attacks computed" in remark]
    first, last = ends
    return (last - first) / (len(found[0].losses) - _PREPARING), "; ".join(remarks) or "alone"


def engine_step(group: Sequence[Private], device: torch.device, simulation: Simulation) -> Callable[[], None]:
    """Return a step of the engine alone: a simulation of all clients as one batch, and its derivative by the images."""
    problems = [
        inversion_problem(on_device(own.observation, device), "automatic", generator(SEED, "attack")) for own in group
    ]
    first = problems[0]

    def stacked(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([own[name] for own in tensors]) for name in tensors[0]}

    parameters, buffers = stacked([own.parameters for own in problems]), stacked([own.buffers for own in problems])
    images = torch.stack([own.to_pixels(own.noise(generator(SEED, "attack"))) for own in problems]).requires_grad_()
    labels = torch.stack([own.labels for own in problems])

    def step() -> None:
        found = simulate_many_local_updates(
            first.model, parameters, buffers, images, labels, first.recipe, simulation=simulation
        )
        updates = list(found.values())
        torch.autograd.grad(updates, images, updates)

    return step


def as_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Return the same step, recorded once and started as a whole."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def lowest_seconds(step: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    """Return the lowest wall time of a step, after one that prepares."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        step()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def engine_seconds(simulation: Simulation, group: Sequence[Private], device: torch.device) -> tuple[float, str]:
    """Return the wall time of a step of the engine alone, and how it is computed."""
    return lowest_seconds(engine_step(group, device, simulation), device), "one batch"


def graph_seconds(simulation: Simulation, group: Sequence[Private], device: torch.device) -> tuple[float, str]:
    """Return the same for a CUDA graph of the step."""
    return lowest_seconds(as_cuda_graph(engine_step(group, device, simulation)), device), "one batch, CUDA graph"


def compare(options: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """Yield lines of Markdown: what a step costs for groups of each size, beside the first."""
    yield "| E, m | what | clients at once | seconds a step | ratio | computed |"
    yield "|---|---|---|---|---|---|"
    measured: list[tuple[str, Callable[..., tuple[float, str]]]] = [
        *((method, partial(seconds_a_step, own)) for method, own in compared(options.steps or COMPARED_STEPS).items()),
        *((f"engine alone, {own}", partial(engine_seconds, own)) for own in ("full", 5)),
    ]
    if device.type == "cuda":
        measured += [(f"engine alone, {own}", partial(graph_seconds, own)) for own in ("full", 5)]
    for epochs, batch_size in options.rows or ((10, 5),):
        group = privates(options, options.clients[: max(options.compare)], epochs, batch_size)
        for what, seconds_of in measured:
            first: float | None = None
            for size in options.compare:
                seconds, how = seconds_of(group[:size], device)
                first = first or seconds
                yield f"| {epochs}, {batch_size} | {what} | {size} | {seconds:.4f} | {seconds / first:.2f} | {how} |"


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
            f"| {fmean(each.seconds_a_step for each in own):.4f} "
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
    parser.add_argument("--at-once", type=int, help="clients attacked at once; default: 32 on a GPU, else 1")
    parser.add_argument("--compare", type=int, nargs="+", metavar="B", help="groups of these sizes, for some steps")
    parser.add_argument("--rows", type=row, nargs="+", metavar="E,m")
    parser.add_argument("--steps", type=int, help="of each attack; default: its own")
    parser.add_argument("--tf32", action="store_true", help="let the GPU round what it multiplies to 10 bits")
    parser.add_argument("--output", type=Path, help="Markdown; written after each attack")
    options = parser.parse_args(arguments)
    path = options.data_folder / FEMNIST.file
    if not path.exists():
        raise SystemExit(f"error: {path} does not exist; name its folder with --data-folder")
    device = torch.device(options.device)
    allow_tf32(is_allowed=options.tf32)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    heading = f"{name}, torch {torch.__version__}, {'TF32' if options.tf32 else 'single precision'}"
    heading += f"; `femnist_like_10k`, N_c = {options.images}, label counts known"
    if options.compare:
        if not 0 < min(options.compare) <= max(options.compare) <= len(options.clients):
            raise SystemExit(f"error: --compare takes sizes from 1 to {len(options.clients)}, the number of --clients")
        lines = [heading, ""]
        print(*lines, sep="\n")
        for line in compare(options, device):
            lines.append(line)
            print(line, flush=True)
            if options.output:  # at once: a lent device may be taken away
                options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    size = AT_ONCE.get(device.type, 1) if options.at_once is None else options.at_once
    if size < 1:
        raise SystemExit(f"error: --at-once must be >= 1, got {size}")
    heading = f"{heading}, {size} at once\n"
    end = time.monotonic() + 60 * options.minutes
    found: list[Measurement] = []
    for start in range(0, len(options.clients), size):
        clients = options.clients[start : start + size]
        for epochs, batch_size in options.rows or ROWS:
            group = privates(options, clients, epochs, batch_size)
            for method, attack in attacks(options.steps).items():
                try:
                    measured = measure(attack, group, device, end)
                except TimeIsUpError:
                    named = ", ".join(map(str, clients))
                    print(f"time is up in client {named}, E = {epochs}, m = {batch_size}, {method}")
                    print(f"{heading}\n{table(found)}")
                    return
                found += [
                    Measurement(
                        epochs=epochs,
                        batch_size=batch_size,
                        method=method,
                        client=private.client,
                        seconds=seconds,
                        seconds_a_step=of_a_step,
                        memory_bytes=held,
                        psnr_db=float(decibels.mean()),
                        recovered_share=float((decibels > THRESHOLD_DB).double().mean()),
                    )
                    for private, (seconds, of_a_step, held, decibels) in zip(group, measured, strict=True)
                ]
                if options.output:
                    options.output.write_text(f"{heading}\n{table(found)}\n", encoding="utf-8")
    print(f"{heading}\n{table(found)}")


if __name__ == "__main__":
    main()
