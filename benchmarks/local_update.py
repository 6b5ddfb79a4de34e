"""What one optimisation step of gradient matching through local training costs, beside the naive unrolled graph.

    python benchmarks/local_update.py --output benchmarks/results/local_update

    naive       torch.optim.SGD written out, the graph of all local steps kept: the reference of every ratio
    whole       our engine with the whole graph, what is taken where it fits
    segments    our engine with segments of about sqrt(U) steps, what is taken where memory ends
    k = 3, 5    our engine, k full-batch gradients for all local steps

A step: simulate the update of N_c images of `femnist_cnn`, take its squared length, and differentiate by the images.
Each line is measured in a process of its own with one thread: CPU time is the lowest of the repeats, memory is the peak
above the same process before the first step. The variants of one setting run one after the other, several times over,
so that a busy machine hits them alike. Two workers at once show what a second core is worth.

Writes a Markdown table, the numbers as JSON, and a picture.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from fl_sim.models import MODELS
from fl_sim.records import DatasetSpec, LocalTraining
from fl_sim.seeds import generator

SETTINGS = {10: (1, 5), 50: (5, 5), 100: (10, 5), 500: (10, 1)}  # U: (E, m), N_c = 50
NUM_IMAGES = (10, 25, 50, 100)
VARIANTS = ("naive", "whole", "segments", "k = 3", "k = 5")
MEBIBYTE = 2**20


def main() -> None:
    """Measure everything, or one line of it in this process."""
    arguments = _arguments()
    if arguments.line is not None:
        print(json.dumps(measure_line(**json.loads(arguments.line))))
        return
    lines = measure(arguments.steps, arguments.rounds)
    workers = {str(number): throughput(number, arguments.steps) for number in (1, 2)}
    result = {
        "command": f"python benchmarks/local_update.py --rounds {arguments.rounds} --steps {arguments.steps}",
        "date": date.today().isoformat(),
        "machine": machine(),
        "lines": lines,
        "steps_per_second": workers,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    draw(result, arguments.output.with_suffix(".png"))
    print(markdown(result))


def naive_update(
    model: nn.Module, parameters: dict[str, Tensor], images: Tensor, labels: Tensor, recipe: LocalTraining
) -> dict[str, Tensor]:
    """Return the mean gradient of local SGD, as anyone would write it: the reference."""
    weights = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    start = weights
    for _ in range(recipe.epochs):
        for batch, batch_labels in zip(images.split(recipe.batch_size), labels.split(recipe.batch_size), strict=True):
            loss = functional.cross_entropy(functional_call(model, weights, (batch,)), batch_labels)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: tensor - recipe.learning_rate * gradient
                for (name, tensor), gradient in zip(weights.items(), gradients, strict=True)
            }
    scale = 1 / (recipe.learning_rate * recipe.steps(len(labels)))
    return {name: scale * (start[name] - tensor) for name, tensor in weights.items()}


def problem(num_images: int, num_steps: int, variant: str) -> tuple[Callable[[Tensor], dict[str, Tensor]], Tensor]:
    """Return the simulation of a variant, and images to start from."""
    epochs, batch_size = SETTINGS[num_steps]
    recipe = LocalTraining(epochs=epochs, batch_size=batch_size, learning_rate=0.004, order="static")
    spec = DatasetSpec(
        image_shape=(1, 28, 28), num_classes=62, mean=(0.96,), std=(0.16,), class_names=tuple(map(str, range(62)))
    )
    model = MODELS["femnist_cnn"](dataset=spec, generator=generator(0, "model-initialisation"))
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    images = torch.rand(num_images, 1, 28, 28, generator=generator(0, "images"))
    labels = torch.arange(num_images) % 62
    if variant == "naive":
        return lambda own: naive_update(model, {**parameters}, own, labels, recipe), images
    steps = recipe.steps(num_images)
    length = max(1, round(steps**0.5)) if variant == "segments" else None
    simulation: Simulation = int(variant.removeprefix("k = ")) if variant.startswith("k") else "full"

    def simulate(own: Tensor) -> dict[str, Tensor]:
        return simulate_local_update(
            model, parameters, buffers, own, labels, recipe, simulation=simulation, segment_length=length
        )

    return simulate, images


def step(simulate: Callable[[Tensor], dict[str, Tensor]], images: Tensor) -> Tensor:
    """Return the derivative by the images of the squared length of the update."""
    own = images.clone().requires_grad_()
    distance = torch.stack([tensor.square().sum() for tensor in simulate(own).values()]).sum()
    return torch.autograd.grad(distance, own)[0]


def measure_line(*, num_images: int, num_steps: int, variant: str, steps: int) -> dict[str, float]:
    """Return CPU seconds a step, peak memory above the bare process in MiB, and the first step's extra seconds."""
    torch.set_num_threads(1)
    simulate, images = problem(num_images, num_steps, variant)
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    for _ in range(steps + 1):
        started = time.process_time()
        step(simulate, images)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fastest = min(seconds[1:])
    return {"seconds": fastest, "memory_mib": (peak - bare) * 1024 / MEBIBYTE, "warm_up": seconds[0] - fastest}


def measure(steps: int, num_rounds: int) -> list[dict[str, Any]]:
    """Return a line for each setting and variant: the best of the rounds, beside the naive graph of the same rounds."""
    settings = [(50, num_steps) for num_steps in SETTINGS] + [(number, 100) for number in NUM_IMAGES if number != 50]
    found: list[dict[str, Any]] = []
    for num_images, num_steps in settings:
        rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(num_rounds):
            for variant in VARIANTS:
                line = {"num_images": num_images, "num_steps": num_steps, "variant": variant, "steps": steps}
                command = [sys.executable, __file__, "--line", json.dumps(line)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rounds[variant].append(json.loads(output))
        reference = {key: min(one[key] for one in rounds["naive"]) for key in ("seconds", "memory_mib")}
        for variant in VARIANTS:
            seconds = min(one["seconds"] for one in rounds[variant])
            memory = statistics.median(one["memory_mib"] for one in rounds[variant])
            found.append(
                {
                    "num_images": num_images,
                    "num_steps": SETTINGS[num_steps][0] * -(-num_images // SETTINGS[num_steps][1]),
                    "variant": variant,
                    "seconds": round(seconds, 4),
                    "time_ratio": round(seconds / reference["seconds"], 3),
                    "memory_mib": round(memory, 1),
                    "memory_ratio": round(memory / reference["memory_mib"], 3),
                    "warm_up": round(min(one["warm_up"] for one in rounds[variant]), 2),
                }
            )
            print(found[-1], file=sys.stderr)
    return found


def throughput(workers: int, steps: int) -> float:
    """Return optimisation steps a second of so many one-thread processes together, U = 100, N_c = 50."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    processes = [context.Process(target=_work, args=(barrier, steps)) for _ in range(workers)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
    return workers * steps / (time.perf_counter() - started)


def _work(barrier: Any, steps: int) -> None:
    torch.set_num_threads(1)
    simulate, images = problem(50, 100, "whole")
    step(simulate, images)
    barrier.wait()
    for _ in range(steps):
        step(simulate, images)


def machine() -> str:
    """Return what it was measured on, in words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} cores, torch {torch.__version__}, Python {platform.python_version()}"


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    rows = [
        "| N_c | U | variant | CPU s a step | ratio | memory MiB | ratio | warm-up s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {line['num_images']} | {line['num_steps']} | {line['variant']} | {line['seconds']:.3f} | "
        f"{line['time_ratio']:.2f} | {line['memory_mib']:.0f} | {line['memory_ratio']:.2f} | {line['warm_up']:.1f} |"
        for line in result["lines"]
    ]
    one, two = result["steps_per_second"]["1"], result["steps_per_second"]["2"]
    return "\n".join(
        [
            "# Cost of one optimisation step through local training",
            "",
            f"    {result['command']}    # {result['date']}, {result['machine']}",
            "",
            "`femnist_cnn`, one thread; ratios to the naive unrolled graph in the same run.",
            "",
            *rows,
            "",
            f"Steps a second of one worker: {one:.2f}, of two together: {two:.2f}, ratio {two / one:.2f}.",
            "",
            *what_decides(result["lines"]),
            "",
        ]
    )


def what_decides(lines: list[dict[str, Any]]) -> list[str]:
    """Return what the lines say about the choice between the whole graph and segments."""
    by_line = {(line["num_images"], line["num_steps"], line["variant"]): line["seconds"] for line in lines}
    settings = {(line["num_images"], line["num_steps"]) for line in lines}
    ratios = [by_line[*setting, "segments"] / by_line[*setting, "whole"] for setting in settings]
    return [
        f"Segments took {min(ratios):.2f} to {max(ratios):.2f} times the time of the whole graph, in every one of the "
        f"{len(ratios)} settings more. So nothing is",
        "to be timed there: the whole graph is taken wherever it fits, else the longest segments that fit, and only "
        "memory decides",
        "(`attacker/graph_memory.py`). Where time decides, batch or one by one, it is measured: see `throughput.md`.",
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw time and memory over U."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in zip(
        axes, ("seconds", "memory_mib"), ("CPU seconds a step", "peak memory, MiB"), strict=True
    ):
        for variant in VARIANTS:
            own = [line for line in result["lines"] if line["variant"] == variant and line["num_images"] == 50]
            axis.plot([line["num_steps"] for line in own], [line[key] for line in own], marker="o", label=variant)
        axis.set(xscale="log", yscale="log", xlabel="local steps U", ylabel=label)
        axis.set_xticks([*SETTINGS], [*map(str, SETTINGS)])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/local_update"))
    parser.add_argument("--steps", type=int, default=3, help="Steps measured in each process.")
    parser.add_argument("--rounds", type=int, default=3, help="Times that all variants of a setting are measured.")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
