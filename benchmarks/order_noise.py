"""What `feature_span` stands on: how much of an update the true images leave unexplained, and where features lie.

    python benchmarks/order_noise.py --data-folder ../shared/data --output benchmarks/results/order_noise.md

Truth is used throughout: these are properties of the problem, not results of an attack. Updates of the FEMNIST network,
eta = 0.004, N_c = 50, are simulated for clients of `femnist_like_10k` on which the attack's constants were chosen.

unexplained   layer-weighted squared distance of a simulation from the update, over the update's energy
outside       share of the features' energy outside the leading right singular vectors of the first linear layer's
              update
doubt         `attacker.image_doubt` of the true images, and of others, each in the place of one true image
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacker.image_doubt import doubts
from attacker.image_span import ImageSpan, image_span
from attacker.inversion_problem import InversionProblem
from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from attacker.order_noise import layer_weighted_vector, no_order_noise, sample_order_noise
from fl_sim.datasets import pixels
from fl_sim.federated_data import FederatedData, load_federated_data
from fl_sim.models import MODELS
from fl_sim.options import build
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator
from reproduction.data import PAPER_DATA
from reproduction.tables import training

CLIENTS = (0, 1, 2)
ORDERS = 40
FLOOR = 1e-4
SETTINGS = ((10, 5), (10, 1))
SIMULATIONS: tuple[Simulation, ...] = (5, "fedsgd_epoch", 20, "merged_10", "merged_5", "full")
RANKS = (50, 60, 80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-folder", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("order_noise.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load_federated_data(replace(PAPER_DATA["femnist_like"], first_client=0).config(options.data_folder), 0)
    problems = {setting: [problem_of(data, client, training(*setting)) for client in CLIENTS] for setting in SETTINGS}
    names = [f"E = {epochs}, m = {size}" for epochs, size in SETTINGS]
    lines = [
        f"`femnist_like_10k`, clients {' / '.join(map(str, CLIENTS))}; `femnist_cnn`, N_c = 50, eta = 0.004; network "
        f"seed 0; K = {ORDERS} orders, floor {FLOOR:g}. Shares outside are means. Computed with the truth.",
        "",
        "| unexplained | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(SETTINGS),
    ]
    tables = [[unexplained(problem, truth) for problem, truth in problems[setting]] for setting in SETTINGS]
    for name in tables[0][0]:
        cells = (" / ".join(f"{found[name]:.1%}" for found in own) for own in tables)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"| outside, {names[0]} | " + " | ".join(f"{rank} directions" for rank in RANKS) + " |"]
    lines.append("|---|" + "---|" * len(RANKS))
    shares = [outside(problem, truth) for problem, truth in problems[SETTINGS[0]]]
    for name in shares[0]:
        cells = (f"{fmean(found[name][column] for found in shares):.5f}" for column in range(len(RANKS)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"| doubt, {names[0]}: median (lowest to highest) | " + " | ".join(f"client {c}" for c in CLIENTS) + " |",
    ]
    lines.append("|---|" + "---|" * len(CLIENTS))
    columns = [doubt_of_kinds(problem, truth) for problem, truth in problems[SETTINGS[0]]]
    for name in columns[0]:
        cells = (f"{d[name].median():.2f} ({d[name].min():.2f} to {d[name].max():.2f})" for d in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ratio = cost_ratio(*problems[SETTINGS[0]][0])
    lines += ["", f"CPU time of a gradient of the matching term over one of the span: {ratio:.0f}"]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def problem_of(
    data: FederatedData, client: int, recipe: LocalTraining, model_name: str = "femnist_cnn"
) -> tuple[InversionProblem, Tensor]:
    """Return a client's update as a problem with known labels, and its images."""
    spec = data.dataset.spec
    model: nn.Module = build(
        MODELS[model_name], {}, where="model", dataset=spec, generator=generator(0, "model-initialisation")
    )
    images, labels = pixels(data.images(client)), data.labels(client)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    order = random_order(recipe, len(labels), torch.Generator().manual_seed(client))
    with torch.no_grad():
        observed = simulate_local_update(model, parameters, {}, images, labels, recipe, order=order)
    problem = InversionProblem(
        model=model,
        parameters=parameters,
        buffers={},
        observed=observed,
        recipe=recipe,
        members=(len(labels),),
        labels=labels,
        order=None,
        mean=torch.tensor(spec.mean).reshape(-1, 1, 1),
        std=torch.tensor(spec.std).reshape(-1, 1, 1),
        image_shape=spec.image_shape,
    )
    return problem, images


def unexplained(problem: InversionProblem, truth: Tensor) -> dict[str, float]:
    """Return the shares of the update's energy."""
    observed = layer_weighted_vector(problem.observed)
    energy = observed.square().sum()

    def share(images: Tensor, simulation: Simulation) -> float:
        return float((observed - layer_weighted_vector(problem.simulate(images, simulation))).square().sum() / energy)

    found = {f"simulation {simulation!r} at the true images": share(truth, simulation) for simulation in SIMULATIONS}
    blurred = functional.avg_pool2d(functional.pad(truth, (1, 1, 1, 1), mode="replicate"), 3, 1)
    for where, images in (("the true images", truth), ("blurred ones", blurred)):
        noise = sample_order_noise(
            problem, images, 5, num_orders=ORDERS, floor=FLOOR, generator=torch.Generator().manual_seed(99)
        )
        residual = observed - layer_weighted_vector(problem.simulate(truth, 5))
        offset_only = replace(no_order_noise(residual), offset=noise.offset)
        found[f"5, mean over orders sampled at {where}"] = float(offset_only.squared_distance(residual) / energy)
        found[f"... and their scatter discounted ({where})"] = float(noise.squared_distance(residual) / energy)
    return found


def outside(problem: InversionProblem, truth: Tensor) -> dict[str, list[float]]:
    """Return the shares of the features' energy, by rank."""
    mixtures = 0.5 * (truth + truth.roll(1, dims=0))
    noisy = truth + 0.1 * problem.std * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    kinds = {"true images": truth, "half-and-half mixtures of two": mixtures, "true images, noise of 0.1 sd": noisy}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for rank in RANKS:
        span = image_span(problem, rank)
        assert isinstance(span, ImageSpan)
        for name, images in kinds.items():
            with torch.no_grad():
                found[name].append(float(span.prior(span.features(images))))
    return found


def doubt_of_kinds(problem: InversionProblem, truth: Tensor) -> dict[str, Tensor]:
    """Return the doubts (N,) of true images, and of each one that takes the place of a true image."""
    span = image_span(problem)
    assert isinstance(span, ImageSpan)
    noise = 0.1 * problem.std * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    first, second = truth.roll(1, dims=0), truth.roll(2, dims=0)
    kinds = {
        "true images, noise of 0.1 sd": truth + noise,
        "half-and-half mixtures of two others": 0.5 * (first + second),
        "copies of another, noise of 0.1 sd": first + noise,
        "true images, moved by two pixels": truth.roll(2, dims=-1),
    }
    with torch.no_grad():
        true = span.features(truth)
        found = {"true images": doubts(true, basis=span.basis)}
        for name, images in kinds.items():
            wrong = span.features(images)
            places = torch.eye(len(truth), dtype=torch.bool)[:, :, None]
            versions = torch.where(places, wrong, true)
            found[name] = torch.stack([doubts(own, basis=span.basis)[i] for i, own in enumerate(versions)])
    return found


def cost_ratio(problem: InversionProblem, truth: Tensor) -> float:
    """Return the CPU time of a gradient through five full-batch steps over that of one of the span prior."""
    span = image_span(problem)
    assert isinstance(span, ImageSpan)

    def seconds(term: Callable[[Tensor], Tensor]) -> float:
        times: list[float] = []
        for _ in range(6):
            variables = truth.clone().requires_grad_()
            started = time.process_time()
            torch.autograd.grad(term(variables), variables)
            times.append(time.process_time() - started)
        return min(times[1:])

    return seconds(lambda images: layer_weighted_vector(problem.simulate(images, 5)).square().sum()) / seconds(
        lambda images: span.prior(span.features(images))
    )


def random_order(recipe: LocalTraining, num_images: int, drawn: torch.Generator) -> Tensor:
    """Return an order (E, N) of visits."""
    return torch.stack([torch.randperm(num_images, generator=drawn) for _ in range(recipe.epochs)])


if __name__ == "__main__":
    main()
