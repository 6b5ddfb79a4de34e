"""How many labels of a client each method of label recovery gets wrong, side by side.

    python benchmarks/label_recovery.py --output label-recovery

FEMNIST network, N_c = 50, K = 62, eta = 0.004, threat model honest_but_curious, clients 100 to 149. Settings: the model
untrained (LeCun-normal weights) or trained by federated averaging over clients 0 to 49; FedSGD, or FedAvg with E epochs
of batches m in random order; labels as they come, or skewed: the images of the clients are sorted by label and dealt
out anew, two runs of 25 to each, so that a client holds few classes.

Each client's update is computed once for each setting, and every method sees that same update. A line for each client
goes to OUTPUT/<setting>.jsonl; the same command goes on after an interruption, and adds methods that are new. The table
is Markdown: mean number of wrong labels (half the L1 distance of the counts) plus or minus its standard error over
clients. Two guesses that do not look at the update stand beside: counts uniform over classes, and the class
frequencies of the images that the client does not hold.

Needs ../shared/data/femnist_like_10k.npz: EMNIST characters made to look like FEMNIST, without writers.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from paper_clients import FEMNIST, SEED
from reference_recipe import DATA, LEARNING_RATE
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.labels import LABEL_RECOVERIES
from attacker.labels.rounding import round_to_sum
from attacker.observation import Observation
from attacker.scoring import count_label_errors
from attacker.threat_models import HONEST_BUT_CURIOUS
from clients.local_training import gradient_on, train_locally
from fl_sim.models import MODELS
from fl_sim.records import Algorithm, ClientUpdate, LocalTraining, RoundRecord
from fl_sim.seeds import generator

BLOCK = 50
SHARD = 25
TRAINING = LocalTraining(epochs=2, batch_size=10, learning_rate=0.1)
GUESSES = ("guess: uniform", "guess: frequencies")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured in one column; ``recipe`` is ``None`` for FedSGD."""

    trained: bool
    skewed: bool
    recipe: LocalTraining | None

    @property
    def name(self) -> str:
        """The name of its file."""
        weights = "trained" if self.trained else "untrained"
        return f"{weights}-{'skewed' if self.skewed else 'natural'}-{self.algorithm}"

    @property
    def algorithm(self) -> str:
        """FedSGD or E and m, for file names and headings."""
        return "fedsgd" if self.recipe is None else f"E{self.recipe.epochs}-m{self.recipe.batch_size}"


def settings() -> tuple[Setting, ...]:
    """Return all settings, those of the untrained model first."""
    pairs = (None, (1, 5), (5, 5), (10, 10), (10, 5), (10, 1))
    recipes = [
        None if pair is None else LocalTraining(epochs=pair[0], batch_size=pair[1], learning_rate=LEARNING_RATE)
        for pair in pairs
    ]
    skewed = [recipe for recipe, pair in zip(recipes, pairs, strict=True) if pair in (None, (1, 5), (10, 5))]
    return (
        *(Setting(trained=False, skewed=False, recipe=recipe) for recipe in recipes),
        *(Setting(trained=False, skewed=True, recipe=recipe) for recipe in skewed),
        *(Setting(trained=True, skewed=False, recipe=recipe) for recipe in recipes),
        *(Setting(trained=True, skewed=True, recipe=recipe) for recipe in skewed),
    )


@cache
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return images uint8 (10000, 1, 28, 28), labels (10000,) and clients (10000,)."""
    with np.load(DATA / FEMNIST.file) as arrays:
        return (
            torch.from_numpy(arrays["images"]).unsqueeze(1),
            torch.from_numpy(arrays["labels"]).long(),
            torch.from_numpy(arrays["clients"]).long(),
        )


def rows(client_id: int, *, skewed: bool) -> Tensor:
    """Return the indices (50,) of a client's images; skewed ones come from the images of its block of 50 clients."""
    _, labels, owners = data()
    if not skewed:
        return (owners == client_id).nonzero().flatten()
    pool = (owners // BLOCK == client_id // BLOCK).nonzero().flatten()
    shards = pool[labels[pool].argsort(stable=True)].split(SHARD)
    order = torch.randperm(len(shards), generator=generator(SEED, "shards", client_id // BLOCK))
    place = 2 * (client_id % BLOCK)
    return torch.cat([shards[int(shard)] for shard in order[place : place + 2]])


def private_batch(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    images, labels, _ = data()
    return images[indices].float() / 255, labels[indices]


def build_model() -> nn.Module:
    """Return the untrained model."""
    return MODELS["femnist_cnn"](dataset=FEMNIST.spec, generator=generator(SEED, "model"))


def trained_weights(path: Path, clients: Sequence[int], num_rounds: int) -> dict[str, Tensor]:
    """Average locally trained models for some rounds, or read what an earlier call wrote."""
    if path.exists():
        return safetensors.torch.load_file(path)
    model = build_model()
    for server_round in range(1, num_rounds + 1):
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
        for client_id in clients:
            model.load_state_dict(start)
            images, labels = private_batch(rows(client_id, skewed=False))
            randomness = generator(SEED, "training", client_id, server_round)
            train_locally(model, images, labels, TRAINING, generator=randomness)
            total = {name: total[name] + tensor for name, tensor in model.state_dict().items()}
        model.load_state_dict({name: tensor / len(clients) for name, tensor in total.items()})
        print(f"training, round {server_round}: accuracy {accuracy(model):.1%} on clients 150 to 199", flush=True)
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    safetensors.torch.save_file(weights, path)
    return weights


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on clients that are used for nothing else."""
    images, labels = private_batch((data()[2] >= 150).nonzero().flatten())
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).double().mean().item()


def observe(
    setting: Setting, weights: dict[str, Tensor], images: Tensor, labels: Tensor, client_id: int
) -> Observation:
    """Train a client and return what the server sees."""
    model = build_model()
    model.load_state_dict(weights, strict=False)
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    if setting.recipe is None:
        tensors = gradient_on(model, images, labels)
    else:
        train_locally(model, images, labels, setting.recipe, generator=generator(SEED, "batch-order", client_id))
        tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    update = ClientUpdate(
        server_round=1,
        client_id=client_id,
        num_examples=len(labels),
        algorithm=Algorithm.FEDSGD if setting.recipe is None else Algorithm.FEDAVG,
        tensors=tensors,
    )
    record = RoundRecord(server_round=1, global_parameters=start, global_buffers={}, updates=(update,), failures=())
    return HONEST_BUT_CURIOUS.observe(
        model=model,
        dataset=FEMNIST.spec,
        record=record,
        update=update,
        local_training=setting.recipe or LocalTraining(learning_rate=LEARNING_RATE),
    )


def guesses(indices: Tensor) -> dict[str, int]:
    """Return the wrong labels of two guesses that do not look at the update."""
    labels = data()[1]
    true = torch.bincount(labels[indices], minlength=FEMNIST.spec.num_classes)
    rest = torch.bincount(labels, minlength=FEMNIST.spec.num_classes) - true
    estimates = (torch.ones(FEMNIST.spec.num_classes), rest.double())
    return {
        name: count_label_errors(true, round_to_sum(len(indices) * estimate / estimate.sum(), len(indices)))
        for name, estimate in zip(GUESSES, estimates, strict=True)
    }


def measure(observation: Observation, true: Tensor, methods: Sequence[str], client_id: int) -> Iterator[dict[str, Any]]:
    """Recover the counts with each method: wrong labels and seconds, or ``None`` where it does not apply."""
    for method in methods:
        started = time.perf_counter()
        try:
            counts = LABEL_RECOVERIES[method](observation, generator=generator(SEED, "attack", client_id))
            wrong = count_label_errors(true, counts)
        except DoesNotApplyError:
            wrong = None
        yield {"client": client_id, "method": method, "wrong": wrong, "seconds": time.perf_counter() - started}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the finished lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    setting: Setting, weights: dict[str, Tensor], clients: Sequence[int], methods: Sequence[str], out: Path
) -> None:
    """Measure what is not yet in the setting's file."""
    path = out / f"{setting.name}.jsonl"
    done = {(line["client"], line["method"]) for line in read_lines(path)}
    for client_id in clients:
        missing = [method for method in methods if (client_id, method) not in done]
        if not missing:
            continue
        indices = rows(client_id, skewed=setting.skewed)
        images, labels = private_batch(indices)
        observation = observe(setting, weights, images, labels, client_id)
        true = torch.bincount(labels, minlength=FEMNIST.spec.num_classes)
        lines = list(measure(observation, true, missing, client_id))
        if (client_id, GUESSES[0]) not in done:
            lines += [{"client": client_id, "method": name, "wrong": n} for name, n in guesses(indices).items()]
        with path.open("a") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines))


def cell(values: Sequence[int | None], num_clients: int) -> str:
    """Return mean and standard error; a dash where a method never applies, n where it is not all clients."""
    if not values:
        return "not measured"
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    share = "" if len(numbers) == num_clients else f" (n = {len(numbers)})"
    return f"{statistics.mean(numbers):.2f} ± {error:.2f}{share}"


def table(chosen: Sequence[Setting], clients: Sequence[int], methods: Sequence[str], out: Path) -> str:
    """Return the Markdown table of all settings of one kind."""
    columns = [read_lines(out / f"{setting.name}.jsonl") for setting in chosen]
    heading = ["method", *(setting.algorithm.replace("-", ", ").replace("fedsgd", "FedSGD") for setting in chosen)]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    n = len(clients)
    for method in (*methods, *GUESSES):
        cells = [
            cell([line["wrong"] for line in column if (line["method"], line["client"] in clients) == (method, True)], n)
            for column in columns
        ]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure all settings and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of intermediate results")
    parser.add_argument("--clients", type=int, nargs=2, default=(100, 149), metavar=("FIRST", "LAST"))
    parser.add_argument("--training-clients", type=int, nargs=2, default=(0, 49), metavar=("FIRST", "LAST"))
    parser.add_argument("--training-rounds", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=[name for name in LABEL_RECOVERIES if name != "idlg"])
    parser.add_argument("--settings", nargs="+", default=[setting.name for setting in settings()], metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    clients = range(arguments.clients[0], arguments.clients[1] + 1)
    training_clients = range(arguments.training_clients[0], arguments.training_clients[1] + 1)
    chosen = [setting for setting in settings() if setting.name in arguments.settings]
    for setting in chosen:
        weights: dict[str, Tensor] = {}
        if setting.trained:
            weights = trained_weights(
                arguments.output / "trained.safetensors", training_clients, arguments.training_rounds
            )
        run(setting, weights, clients, arguments.methods, arguments.output)
        print(f"{setting.name}: done", flush=True)
    for trained in (False, True):
        for skewed in (False, True):
            some = [setting for setting in chosen if (setting.trained, setting.skewed) == (trained, skewed)]
            if some:
                print(f"\n{'trained' if trained else 'untrained'}, {'skewed' if skewed else 'natural'} labels\n")
                print(table(some, clients, arguments.methods, arguments.output))


if __name__ == "__main__":
    main()
