"""How far features drift from the span of the update, by where on the way from w_t to w_c they are taken.

    python benchmarks/feature_drift.py --output benchmarks/results/feature_drift.md

The first fully connected layer's update adds up the features at all local steps. This is computed with the truth, about
updates and not by an attack, for clients on which constants may be tuned: the share of the features' energy outside the
leading right singular vectors of the update, and by how much larger it is for a half-and-half mixture of two images.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from order_noise import problem_of, training
from torch import Tensor

from attacker.image_span import ImageSpan, image_span
from attacker.inversion_problem import InversionProblem
from fl_sim.federated_data import load_federated_data
from reproduction.data import PAPER_DATA

CLIENTS = (0, 1, 2)
RANK = 80
POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = (("femnist_like", 10, 5), ("femnist_like", 10, 1), ("cifar100", 10, 5))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("feature_drift.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [
        f"Clients {', '.join(map(str, CLIENTS))}; N_c = 50, eta = 0.004, network seed 0, {RANK} directions; means over "
        "clients. Share outside at the true images / at half-and-half mixtures of two. Computed with the truth.",
        "",
        "| features at | " + " | ".join(f"{name}, E = {epochs}, m = {size}" for name, epochs, size in SETTINGS) + " |",
        "|---|" + "---|" * len(SETTINGS),
    ]
    columns = [shares_by_position(*setting, folder=options.data_folder) for setting in SETTINGS]
    for position in POSITIONS:
        cells = (f"{true:.5f} / {mixed:.5f}" for true, mixed in (column[position] for column in columns))
        lines.append(f"| {position:g} of the way | " + " | ".join(cells) + " |")
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def shares_by_position(name: str, epochs: int, batch_size: int, *, folder: Path) -> dict[float, tuple[float, float]]:
    """Return the shares outside, of true images and of mixtures, by position."""
    paper = PAPER_DATA[name]
    data = load_federated_data(replace(paper, first_client=0).config(folder), 0)
    problems = [problem_of(data, client, training(epochs, batch_size), paper.model) for client in CLIENTS]
    found: dict[float, tuple[float, float]] = {}
    for position in POSITIONS:
        pairs = [_outside(problem, truth, position) for problem, truth in problems]
        found[position] = fmean(true for true, _ in pairs), fmean(mixed for _, mixed in pairs)
    return found


def _outside(problem: InversionProblem, truth: Tensor, position: float) -> tuple[float, float]:
    span = image_span(problem, RANK, position=position)
    assert isinstance(span, ImageSpan)
    with torch.no_grad():
        true, mixed = (span.prior(span.features(own)) for own in (truth, 0.5 * (truth + truth.roll(1, dims=0))))
    return float(true), float(mixed)


if __name__ == "__main__":
    main()
