"""What a few wide steps miss of a local training, by network: at smooth fields, and at the private images.

    python benchmarks/wide_steps.py --run RUN --round 11 --weights label-recovery/trained.safetensors --output FILE

The first column is what the feature-span attack looks at before it chooses its constants (`attacker.wide_steps`); the
second needs the truth and is what it stands for. FEMNIST network, N_c = 50, m = 5, eta = 0.004; a share of the energy
of the update. ``--run`` adds the network that a run's server sent out in a round, such as those that
`fl-sim reproduce table7` leaves, and ``--weights`` one of a file of safetensors, such as that of
`benchmarks/label_recovery.py --training-rounds 10`.

Needs ../shared/data/femnist_like_10k.npz: EMNIST characters made to look like FEMNIST, without writers.
"""

import argparse
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from paper_clients import FEMNIST
from reference_recipe import BATCH_SIZE, DATA, LEARNING_RATE, sent_out
from torch import Tensor

from attacker.inversion_problem import inversion_problem
from attacker.threat_models import KNOWN_LABEL_COUNTS
from attacker.wide_steps import missed, missed_at
from fl_sim.records import LocalTraining

WIDE = 5


def networks(arguments: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Tensor] | None]]:
    """Yield what clients start from, ``None`` for the untrained network."""
    yield "untrained", None
    if arguments.run is not None:
        yield f"sent out in round {arguments.round}", sent_out(arguments.run, arguments.round)
    if arguments.weights is not None:
        yield arguments.weights.name, safetensors.torch.load_file(arguments.weights)


def row(name: str, parameters: Mapping[str, Tensor] | None, epochs: int, clients: list[int]) -> str:
    """Return a line of the table: smallest and largest over the clients."""
    recipe = LocalTraining(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    shares: list[tuple[float, float]] = []
    for client in clients:
        images, labels = FEMNIST.private_batch(DATA, client)
        observation = FEMNIST.observe(images, labels, client, recipe, KNOWN_LABEL_COUNTS, parameters)
        problem = inversion_problem(observation, "automatic", torch.Generator().manual_seed(client))
        shares.append((missed(problem, WIDE), missed_at(images, problem, WIDE)))
    cells = [f"{min(column):.2g} to {max(column):.2g}" for column in zip(*shares, strict=True)]
    return f"| {name} | {epochs} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(range(100, 110)))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--run", type=Path, help="folder of a run")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{datetime.date.today()}. What {WIDE} full-batch gradients miss of a local training, share of the update's "
        f"energy; m = {BATCH_SIZE}, eta = {LEARNING_RATE}, clients {arguments.clients}, smallest to largest; label "
        "counts known (an upper bound). `femnist_like_10k`, not FEMNIST.",
        "",
        "| network | E | at smooth fields | at the private images |",
        "|---|---|---|---|",
    ]
    for name, parameters in networks(arguments):
        for epochs in arguments.epochs:
            lines.append(row(name, parameters, epochs, arguments.clients))
            print(lines[-1], flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
