"""Many clients: one-thread workers side by side, or one batch in one process; and how the cost of a step grows.

    python benchmarks/throughput.py --output benchmarks/results/throughput

A step: simulate the update of each client's images, take its squared length, and differentiate by the images.

    workers   as many one-thread processes as there are cores share the clients, each client by itself: wall time, and
              the CPU time of the slowest worker, which is what the wall time would be with a core for each
    batch     all clients in one process and thread, `attacker.many_local_updates`: CPU time, and the peak of memory
              above the same process before the first step

The throughput of both is a multiple of that of one client alone in the same run, measured in the same way. Times are
the lowest of the repeats. What else runs on the machine stretches the wall time; the share of the cores that it held
stands beside it.

Writes a Markdown table, the numbers as JSON, and a picture.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from local_update import machine
from torch import Tensor, nn

from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from attacker.many_local_updates import simulate_many_local_updates
from fl_sim.models import MODELS
from fl_sim.models.pooled_cnn import pooled_cnn
from fl_sim.records import DatasetSpec, LocalTraining
from fl_sim.seeds import generator

CLIENTS = (1, 2, 8, 32)
SETTINGS: dict[str, dict[str, Any]] = {
    "FEMNIST, 5 full-batch steps": {"model": "femnist_cnn", "num_images": 50, "epochs": 10, "simulation": 5},
    "8x8 pictures, full (U = 4)": {"model": "convnet", "num_images": 10, "epochs": 2, "simulation": "full"},
}
WIDTHS = (0.25, 0.5, 1.0, 2.0)
BATCH_SIZE = 5
MEBIBYTE = 2**20


def main() -> None:
    """Measure everything, or one line of it in this process."""
    arguments = _arguments()
    if arguments.line is not None:
        print(json.dumps(measure_line(**json.loads(arguments.line))))
        return
    steps = arguments.steps
    result = {
        "command": f"python benchmarks/throughput.py --steps {steps}",
        "date": date.today().isoformat(),
        "machine": machine(),
        "throughput": [line for name in SETTINGS for line in throughput(name, steps)],
        "growth": growth(steps),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    draw(result, arguments.output.with_suffix(".png"))
    print(markdown(result))


def network(name: str, width: float = 1.0) -> tuple[nn.Module, DatasetSpec]:
    """Return a network and the data that it is for; ``width`` multiplies the layers of `femnist_cnn`."""
    side, num_classes = (28, 62) if name == "femnist_cnn" else (8, 10)
    spec = DatasetSpec(
        image_shape=(1, side, side),
        num_classes=num_classes,
        mean=(0.96,),
        std=(0.16,),
        class_names=tuple(map(str, range(num_classes))),
    )
    draws = generator(0, "model-initialisation")
    if name != "femnist_cnn":
        return MODELS[name](dataset=spec, generator=draws, width=16), spec
    net = pooled_cnn(
        name=name,
        dataset=spec,
        generator=draws,
        widths=(int(32 * width), int(64 * width)),
        hidden=int(100 * width),
        paper_table5=False,
        weights=None,
    )
    return net, spec


def problem(
    *, model: str, num_images: int, epochs: int, simulation: Simulation, clients: int | None, width: float = 1.0
) -> tuple[Callable[[], Tensor], int]:
    """Return a step of one client, or of several as one batch, and the network's number of parameters."""
    net, spec = network(model, width)
    recipe = LocalTraining(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=0.004, order="static")
    parameters = {name: tensor.detach() for name, tensor in net.named_parameters()}
    several = clients or 1
    images = torch.rand(several, num_images, *spec.image_shape, generator=generator(0, "images"))
    labels = torch.arange(several * num_images).reshape(several, num_images) % spec.num_classes

    def step() -> Tensor:
        own = (images if clients else images[0]).clone().requires_grad_()
        if clients:
            stacked = {name: tensor.expand(clients, *tensor.shape) for name, tensor in parameters.items()}
            update = simulate_many_local_updates(net, stacked, {}, own, labels, recipe, simulation=simulation)
        else:
            update = simulate_local_update(net, parameters, {}, own, labels[0], recipe, simulation=simulation)
        distance = torch.stack([tensor.square().sum() for tensor in update.values()]).sum()
        return torch.autograd.grad(distance, own)[0]

    return step, sum(tensor.numel() for tensor in parameters.values())


def measure_line(*, steps: int, **setting: Any) -> dict[str, float]:
    """Return CPU seconds a step, peak memory above the bare process in MiB, and the parameters."""
    torch.set_num_threads(1)
    step, num_parameters = problem(**setting)
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    for _ in range(steps + 1):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds[1:]), "memory_mib": (peak - bare) * 1024 / MEBIBYTE, "parameters": num_parameters}


def in_own_process(**line: Any) -> dict[str, float]:
    """Return `measure_line` of a fresh process."""
    command = [sys.executable, __file__, "--line", json.dumps(line)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def throughput(name: str, steps: int) -> list[dict[str, Any]]:
    """Return a line for each number of clients: both ways, as multiples of one client alone."""
    setting = SETTINGS[name]
    repeats = steps if setting["model"] == "femnist_cnn" else 10 * steps  # short ones scatter more
    alone = in_own_process(**setting, clients=None, steps=repeats)
    walls = {clients: workers(setting, clients, steps) for clients in CLIENTS}
    found: list[dict[str, Any]] = []
    for clients in CLIENTS:
        batch = in_own_process(**setting, clients=clients, steps=repeats)
        own = walls[clients]
        found.append(
            {
                "setting": name,
                "clients": clients,
                "alone_seconds": round(alone["seconds"], 4),
                "workers_wall_seconds": round(own["wall"], 4),
                "workers_cpu_seconds": round(own["cpu"], 4),
                "workers_wall_throughput": round(clients * walls[1]["wall"] / own["wall"], 2),
                "workers_cpu_throughput": round(clients * walls[1]["cpu"] / own["cpu"], 2),
                "others_share": round(own["others"], 2),
                "batch_seconds": round(batch["seconds"], 4),
                "batch_throughput": round(clients * alone["seconds"] / batch["seconds"], 2),
                "batch_memory_mib": round(batch["memory_mib"]),
            }
        )
        print(found[-1], file=sys.stderr)
    return found


def workers(setting: dict[str, Any], clients: int, steps: int) -> dict[str, float]:
    """Return what a step of all clients takes by one-thread workers.

    Returns:
        Seconds of ``wall`` time, ``cpu`` seconds of the slowest worker, and the cores' share that ``others`` held.
    """
    cores = os.cpu_count() or 1
    count = min(clients, cores)
    context = multiprocessing.get_context("spawn")
    barrier, spent = context.Barrier(count + 1, timeout=1800), context.Array("d", count)
    shares = [len(range(worker, clients, count)) for worker in range(count)]
    # A few tiny steps are over before a clock could tell them.
    rounds = 1 if setting["model"] == "femnist_cnn" else 20
    processes = [
        context.Process(target=_work, args=(barrier, spent, worker, setting, rounds * own, steps))
        for worker, own in enumerate(shares)
    ]
    for process in processes:
        process.start()
    found: list[dict[str, float]] = []
    for _ in range(steps + 1):
        barrier.wait()
        started, busy = time.perf_counter(), _busy_seconds()
        barrier.wait()
        wall = time.perf_counter() - started
        others = max(0.0, _busy_seconds() - busy - sum(spent[:])) / (wall * cores)
        found.append({"wall": wall / rounds, "cpu": max(spent[:]) / rounds, "others": others})
    for process in processes:
        process.join()
    fastest = min(found[1:], key=lambda one: one["wall"])
    return {**fastest, "cpu": min(one["cpu"] for one in found[1:])}


def _work(barrier: Any, spent: Any, worker: int, setting: dict[str, Any], repeats: int, steps: int) -> None:
    torch.set_num_threads(1)
    step, _ = problem(**setting, clients=None)
    for _ in range(steps + 1):
        barrier.wait()
        started = time.process_time()
        for _ in range(repeats):
            step()
        spent[worker] = time.process_time() - started
        barrier.wait()


def _busy_seconds() -> float:
    """Return the seconds for which cores of this machine have not been idle, of all processes together."""
    numbers = [int(number) for number in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]]
    idle = numbers[3] + numbers[4]
    return (sum(numbers[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def growth(steps: int) -> list[dict[str, Any]]:
    """Return what a step costs as layers grow, as images are added, and as more gradients are followed."""
    base = {"model": "femnist_cnn", "num_images": 50, "epochs": 10, "simulation": 5, "clients": None, "width": 1.0}
    full = {**base, "epochs": 2, "simulation": "full"}
    series: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "width, k = 5": [(width, {**base, "width": width}) for width in WIDTHS],
        "width, full with U = 20": [(width, {**full, "width": width}) for width in WIDTHS],
        "N_c, k = 5": [(number, {**base, "num_images": number}) for number in (10, 25, 50, 100)],
        "k full-batch gradients": [(number, {**base, "simulation": number}) for number in (1, 2, 5, 10)],
    }
    found: list[dict[str, Any]] = []
    for name, lines in series.items():
        measured = [in_own_process(**line, steps=steps) for _, line in lines]
        first = measured[0]
        found += [
            {
                "series": name,
                "value": value,
                "parameters": int(own["parameters"]),
                "seconds": round(own["seconds"], 4),
                "time_ratio": round(own["seconds"] / first["seconds"], 2),
                "memory_mib": round(own["memory_mib"]),
            }
            for (value, _), own in zip(lines, measured, strict=True)
        ]
        print(*found[-len(lines) :], sep="\n", file=sys.stderr)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return both tables."""
    cores = os.cpu_count() or 1
    rows = [
        f"{line['setting']} | {line['clients']} | {line['workers_wall_seconds']:.3f} "
        f"| {line['workers_wall_throughput']:.2f} | {line['others_share']:.0%} | {line['workers_cpu_seconds']:.3f} "
        f"| {line['workers_cpu_throughput']:.2f} | {line['batch_seconds']:.3f} | {line['batch_throughput']:.2f} "
        f"| {line['batch_memory_mib']}"
        for line in result["throughput"]
    ]
    grown = [
        f"{line['series']} | {line['value']:g} | {line['parameters']:,} | {line['seconds']:.3f} "
        f"| {line['time_ratio']:.2f} | {line['memory_mib']}"
        for line in result["growth"]
    ]
    return "\n".join(
        [
            "# Many clients, and how the cost of a step grows",
            "",
            f"    {result['command']}    # {result['date']}, {result['machine']}",
            "",
            f"A step of all clients: by {cores} one-thread workers, and as one batch in one process and thread. "
            "Throughput is a multiple of",
            "one client alone in the same run. `Others` is the share of the cores that other processes held while the "
            "workers ran; the CPU",
            "seconds of the slowest worker are what the wall time would be without them.",
            "",
            "| | clients | workers, wall s | throughput | others | workers, CPU s | throughput | batch, CPU s "
            "| throughput | batch, MiB |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(f"| {row} |" for row in rows),
            "",
            "One client, CPU time; ratios to the first line of each series. Width multiplies the layers of "
            "`femnist_cnn`; N_c = 50 where nothing else is said.",
            "",
            "| | | parameters | CPU s a step | ratio | memory MiB |",
            "|---|---|---|---|---|---|",
            *(f"| {row} |" for row in grown),
            "",
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw throughput over clients, and cost over parameters."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for colour, name in zip(("tab:blue", "tab:orange"), SETTINGS, strict=True):
        own = [line for line in result["throughput"] if line["setting"] == name]
        clients = [line["clients"] for line in own]
        left.plot(
            clients, [line["workers_cpu_throughput"] for line in own], "o-", color=colour, label=f"workers: {name}"
        )
        left.plot(clients, [line["batch_throughput"] for line in own], "s--", color=colour, label=f"batch: {name}")
    left.axhline(1, color="grey", linewidth=0.8)
    left.set(xscale="log", xlabel="clients", ylabel="throughput by CPU time, one client alone = 1", ylim=(0, None))
    left.set_xticks([*CLIENTS], [*map(str, CLIENTS)])
    for name in ("width, k = 5", "width, full with U = 20"):
        own = [line for line in result["growth"] if line["series"] == name]
        right.plot(
            [line["parameters"] for line in own],
            [line["time_ratio"] for line in own],
            "o-",
            label=name.removeprefix("width, "),
        )
    parameters = [line["parameters"] for line in own]
    right.plot(parameters, [number / parameters[0] for number in parameters], ":", color="grey", label="proportional")
    right.set(xscale="log", yscale="log", xlabel="parameters (width 1/4 to 2)", ylabel="CPU time a step, smallest = 1")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    left.minorticks_off()
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/throughput"))
    parser.add_argument("--steps", type=int, default=2, help="Steps measured of each line, after one that prepares.")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
