"""How well the number of a client's images, N_c, is read from its update where nobody says it.

    python benchmarks/num_examples.py --output benchmarks/results/num_examples.md

FEMNIST network, K = 62, m = 5, eta = 0.004, random batches; FedSGD and FedAvg with E epochs. Clients are consecutive
rows of `femnist_like_10k`, beginning at those of clients 100, 105, ..., 145; constants were chosen on clients 0 to 49.
The attacker sees update, weights and recipe; neither N_c nor the candidates of the table. Where it refuses, the cell
says how often; errors are means over the clients for which it answers. Beside it stands a guess that looks at nothing:
the mean of the candidates.

`--training-rounds R` adds the network after R rounds of federated averaging over clients 0 to 49, kept in
`--weights FILE`.

Needs ../shared/data/femnist_like_10k.npz: EMNIST characters made to look like FEMNIST, without writers.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from label_recovery import Setting, build_model, observe, private_batch, trained_weights
from paper_clients import SEED
from reference_recipe import BATCH_SIZE, LEARNING_RATE
from torch import Tensor

from attacker.attack import DoesNotApplyError
from attacker.num_examples import NumExamplesEstimate, estimate_num_examples
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

CANDIDATES = (1, 5, 10, 25, 50, 100)
BETWEEN = (48,)
EPOCHS = (None, 1, 5, 10)
IMAGES_PER_CLIENT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The estimates of one column for one N_c; ``None`` where the method refuses."""

    num_examples: int
    estimates: tuple[NumExamplesEstimate | None, ...]

    def answers(self) -> list[NumExamplesEstimate]:
        """Return the estimates without the refusals."""
        return [estimate for estimate in self.estimates if estimate is not None]

    def text(self) -> str:
        """Return mean absolute and relative error, exact hits, intervals that hold, and refusals."""
        found = self.answers()
        if not found:
            return f"refuses ({len(self.estimates)})"
        errors = [abs(estimate.num_examples - self.num_examples) for estimate in found]
        held = sum(estimate.low <= self.num_examples <= estimate.high for estimate in found)
        refused = len(self.estimates) - len(found)
        missing = f"; refuses {refused}" if refused else ""
        return (
            f"{fmean(errors):.1f} ({fmean(errors) / self.num_examples:.0%}), exact {errors.count(0)}, "
            f"in interval {held} of {len(found)}{missing}"
        )


def measure(weights: dict[str, Tensor], epochs: int | None, num_examples: int, clients: Sequence[int]) -> Cell:
    """Estimate N_c of each client."""
    recipe = None
    if epochs is not None:
        recipe = LocalTraining(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    setting = Setting(trained=False, skewed=False, recipe=recipe)
    estimates: list[NumExamplesEstimate | None] = []
    for client in clients:
        first = client * IMAGES_PER_CLIENT
        images, labels = private_batch(torch.arange(first, first + num_examples))
        seen = observe(setting, weights, images, labels, client)
        seen = replace(seen, knowledge=replace(seen.knowledge, num_examples=None))
        try:
            estimates.append(estimate_num_examples(seen, generator=generator(SEED, "attack", client)))
        except DoesNotApplyError:
            estimates.append(None)
    return Cell(num_examples=num_examples, estimates=tuple(estimates))


def table(
    weights: dict[str, Tensor], columns: Sequence[int | None], sizes: Sequence[int], clients: Sequence[int]
) -> list[str]:
    """Return the lines of a Markdown table."""
    names = ["FedSGD" if epochs is None else f"E = {epochs}" for epochs in columns]
    lines = ["| N_c | " + " | ".join(names) + " | guess: mean of the candidates |", "|" + "---|" * (len(names) + 2)]
    guess = round(fmean(CANDIDATES))
    for size in sizes:
        cells = [measure(weights, epochs, size, clients) for epochs in columns]
        miss = abs(guess - size)
        lines.append(f"| {size} | " + " | ".join(cell.text() for cell in cells) + f" | {miss} ({miss / size:.0%}) |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/num_examples.md"))
    parser.add_argument("--clients", type=int, nargs="+", default=list(range(100, 150, 5)))
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted((*CANDIDATES, *BETWEEN)))
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS), help="0 is FedSGD")
    parser.add_argument("--training-rounds", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=Path("num-examples-trained.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [epochs or None for epochs in options.epochs]
    untrained = {name: tensor.detach().clone() for name, tensor in build_model().named_parameters()}
    lines = [
        f"`femnist_like_10k` (EMNIST made to look like FEMNIST, no writers), `femnist_cnn`, m = {BATCH_SIZE}, "
        f"eta = {LEARNING_RATE}; clients that begin at {', '.join(map(str, options.clients))}; N_c unknown to the "
        "attacker. Mean absolute error in images (relative), exact answers, 90 % intervals that hold N_c.",
        "",
        "Untrained network:",
        "",
        *table(untrained, columns, options.sizes, options.clients),
    ]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.training_rounds:
        trained = trained_weights(options.weights, range(50), options.training_rounds)
        lines += ["", f"After {options.training_rounds} rounds of federated averaging over clients 0 to 49:", ""]
        lines += table(trained, columns, options.sizes, options.clients)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
