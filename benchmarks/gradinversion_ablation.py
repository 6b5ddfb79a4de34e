"""What each part of GradInversion is worth: gradient only, + fidelity, + group mean, + registered group.

    python benchmarks/gradinversion_ablation.py --output /tmp/ablation.jsonl

One client with FedSGD and a single batch; every arm optimises the same seeds from the same starts for the same number
of steps and returns the seed of lowest matching loss, so that arms differ in the named terms only. ``fidelity`` adds
total variation, L2 norm, BatchNorm statistics (inferred from the buffers of the reply) and pixel noise. Each result is
one JSON line; a result that is there is not computed again. The mean image of the rest of the data stands beside them.
``--model small_bn`` is a network of three convolutions for quick runs. ``--run RUN`` attacks the network that a
federation left (experiments/cifar100_resnet18.toml), and ``--model-options '{"weights": FILE}'`` that of a file.

Weights: the paper's (ImageNet, trained ResNet-50, 20 000 steps) unless ``--options`` says otherwise.
Needs ../shared/data: the pictures, and AlexNet's weights for LPIPS.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from attacker.attack import Progress as Step
from attacker.baselines import trivial_baselines
from attacker.metrics.features import FeaturesUnavailable, load_features
from attacker.metrics.iip import ImagePool, make_pool
from attacker.metrics.lpips import LpipsUnavailable, PerceptualDistance, load_lpips
from attacker.observation import Observation
from attacker.recipes import GradInversion
from attacker.scoring import DEFAULT_THRESHOLD_DB, score
from attacker.threat_models import THREAT_MODELS
from clients.local_training import gradient_on
from fl_sim.models import MODELS, Normalisation
from fl_sim.models.initialisation import seeded_construction
from fl_sim.options import build
from fl_sim.records import Algorithm, ClientUpdate, DatasetSpec, LocalTraining, RoundRecord
from fl_sim.run_store import open_run
from fl_sim.seeds import generator

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = {"cifar100": "cifar100_3k.npz", "imagenet64": "imagenet64_224.npz"}
SPECS = {
    "cifar100": DatasetSpec(
        image_shape=(3, 32, 32),
        num_classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        class_names=tuple(str(label) for label in range(100)),
    ),
    # The normalisation (pixel - 127) / 128, which the EfficientNet-Lite0 weights were trained with.
    "imagenet64": DatasetSpec(
        image_shape=(3, 224, 224),
        num_classes=1000,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        class_names=tuple(str(label) for label in range(1000)),
    ),
}
GRADIENT_ONLY = {
    "total_variation": 0.0,
    "l2_norm": 0.0,
    "batch_norm_statistics": 0.0,
    "batch_norm": "none",
    "pixel_noise": 0.0,
    "group_weight": 0.0,
}
ARMS: dict[str, dict[str, Any]] = {
    "gradient": GRADIENT_ONLY,
    "fidelity": {"group_weight": 0.0},
    "group mean": {"consensus": "mean"},
    "registered group": {"consensus": "registered"},
}
CLIENT_SIZE = {"cifar100": 50, "imagenet64": 8}
"""Consecutive pictures of a client; a batch is its first ones."""
POOL_IMAGES = 200
"""Pictures among which IIP looks for the nearest neighbour, beside the private ones."""


def small_bn(*, dataset: DatasetSpec, generator: torch.Generator, width: int = 32) -> nn.Module:
    """Build three 3x3 convolutions of 1, 2 and 4 times ``width`` channels, each with BatchNorm, and a linear layer."""
    channels, height, width_of_image = dataset.image_shape

    def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    with seeded_construction(generator):
        return nn.Sequential(
            Normalisation(dataset.mean, dataset.std),
            *block(channels, width),
            nn.AvgPool2d(2),
            *block(width, 2 * width),
            nn.AvgPool2d(2),
            *block(2 * width, 4 * width),
            nn.Flatten(),
            nn.Linear(4 * width * (height // 4) * (width_of_image // 4), dataset.num_classes),
        )


def load(data: str) -> tuple[Tensor, Tensor]:
    """Return all pixels (M, 3, H, W) in [0, 1] and labels (M,)."""
    with np.load(DATA / FILES[data]) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def observe(images: Tensor, labels: Tensor, spec: DatasetSpec, arguments: argparse.Namespace) -> Observation:
    """Let a client compute its gradient, and return what the server sees."""
    model = build(
        small_bn if arguments.model == "small_bn" else MODELS[arguments.model],
        arguments.model_options,
        where="--model-options",
        dataset=spec,
        generator=generator(arguments.seed, "model"),
    ).train()
    if arguments.run is not None:
        parameters, buffers = open_run(arguments.run).recording.read_final()
        model.load_state_dict({**parameters, **buffers})
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    update = ClientUpdate(
        server_round=1,
        client_id=0,
        num_examples=len(labels),
        algorithm=Algorithm.FEDSGD,
        tensors=gradient_on(model, images, labels),
        buffers={name: tensor.clone() for name, tensor in model.named_buffers()},
    )
    record = RoundRecord(server_round=1, global_parameters=start, global_buffers=before, updates=(update,), failures=())
    return THREAT_MODELS[arguments.threat_model].observe(
        model=model,
        dataset=spec,
        record=record,
        update=update,
        local_training=LocalTraining(learning_rate=0.1),
        label_counts=torch.bincount(labels, minlength=spec.num_classes),
    )


def attack_of(arm: str, arguments: argparse.Namespace) -> GradInversion:
    """Return an arm's attack: a quarter of the steps alone, then together, as in the paper."""
    schedule = {"group_start": arguments.steps // 4, "group_refresh": max(1, arguments.steps // 30)}
    options = {"steps": arguments.steps, "group_size": arguments.seeds, **schedule, **arguments.options, **ARMS[arm]}
    return build(GradInversion, options, where="--options")


def measure(
    attack: GradInversion,
    observation: Observation,
    private: tuple[Tensor, Tensor],
    lpips: PerceptualDistance | None,
    pool: ImagePool | None,
    seed: int,
    bar: Progress,
    title: str,
) -> dict[str, Any]:
    """Run one attack and score it."""
    task = bar.add_task(title, total=attack.steps)

    def on_step(step: Step) -> None:
        bar.update(task, completed=step.step)

    cpu_started = time.process_time()
    found = attack(observation, generator=generator(seed, "attack", 0), on_step=on_step)
    own = score(
        images=found.images,
        labels=found.labels,
        private_images=private[0],
        private_labels=private[1],
        num_classes=observation.dataset.num_classes,
        lpips=lpips,
        private_pool=None if pool is None else pool.including(private[0]),
    )
    return {
        "iip": None if own.identifiability is None else own.identifiability.precision,
        "psnr_db": own.mean_psnr_db,
        "lpips": own.mean_lpips,
        "ssim": own.mean_ssim,
        "wrong_labels": own.label_count_error,
        "matching_loss": found.matching_loss,
        "matching_loss_at_start": float(found.losses[0]),
        "outcome": found.outcome.value,
        "seconds": found.seconds,
        "cpu_seconds": time.process_time() - cpu_started,
    }


def mean_image(images: Tensor, own: slice, lpips: PerceptualDistance | None) -> dict[str, Any]:
    """Score the mean of the other pictures on a batch."""
    pool = torch.cat([images[: own.start], images[own.stop :]])
    guess = trivial_baselines(
        images[own], pool, threshold_db=DEFAULT_THRESHOLD_DB, generator=torch.Generator(), lpips=lpips, num_draws=1
    )[0]
    return {"psnr_db": guess.mean_psnr_db, "lpips": guess.mean_lpips, "ssim": guess.mean_ssim}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(FILES), default="cifar100")
    parser.add_argument("--model", default="resnet18", help="small_bn, an entry of MODELS, or module:name")
    parser.add_argument("--model-options", type=json.loads, help='JSON; resnet18 on cifar100: {"stem": "cifar"}')
    parser.add_argument("--run", type=Path, help="folder of a run whose last network the client starts from")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="size of the group, the same in every arm")
    parser.add_argument("--clients", type=int, nargs="+", default=[30])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, fields of GradInversion, for every arm")
    parser.add_argument("--threat-model", default="known_label_counts")
    parser.add_argument("--seed", type=int, default=0, help="of weights and starts")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; finished ones are skipped")
    arguments = parser.parse_args()
    if arguments.model_options is None:
        small = arguments.data == "cifar100" and arguments.model.startswith("resnet")
        arguments.model_options = {"stem": "cifar"} if small else {}
    if not 1 <= arguments.batch <= CLIENT_SIZE[arguments.data]:
        parser.error(f"--batch must be in [1, {CLIENT_SIZE[arguments.data]}], got {arguments.batch}")
    return arguments


def main() -> None:
    """Measure what is missing, and print the table."""
    arguments = parse()
    torch.set_num_threads(1)
    loaded = load_lpips(DATA / "alexnet_features.pth")
    lpips = None if isinstance(loaded, LpipsUnavailable) else loaded
    images, labels = load(arguments.data)
    extractor = load_features(efficientnet_weights=DATA / "efficientnet_lite0_57934424.pth")
    pool = None if isinstance(extractor, FeaturesUnavailable) else make_pool(images[:POOL_IMAGES], extractor)
    spec = SPECS[arguments.data]
    shared = {
        name: getattr(arguments, name)
        for name in ("data", "model", "model_options", "batch", "steps", "seeds", "options", "threat_model", "seed")
    }
    shared["run"] = None if arguments.run is None else open_run(arguments.run).folder.name
    done = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        for client in arguments.clients:
            first = client * CLIENT_SIZE[arguments.data]
            own = slice(first, first + arguments.batch)
            private = (images[own], labels[own])
            if len(private[1]) != arguments.batch:
                raise SystemExit(f"client {client} has no {arguments.batch} pictures; the file holds {len(labels)}")
            rows.append({"arm": "mean image", "client": client, **mean_image(images, own, lpips)})
            observation = observe(*private, spec, arguments)
            for arm in arguments.arms:
                key = {"arm": arm, "client": client, "setting": shared}
                found = next((row for row in done if all(row.get(name) == key[name] for name in key)), None)
                if found is None:
                    attack = attack_of(arm, arguments)
                    title = f"client {client}, {arm}"
                    found = {**key, **measure(attack, observation, private, lpips, pool, arguments.seed, bar, title)}
                    with arguments.output.open("a") as lines:
                        lines.write(json.dumps(found) + "\n")
                rows.append(found)
    print(f"{json.dumps(shared)}, clients {arguments.clients}\n")
    print("| arm | PSNR dB | LPIPS | IIP | SSIM | matching loss | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for arm in ("mean image", *arguments.arms):
        cells = [_mean(rows, arm, name) for name in ("psnr_db", "lpips", "iip", "ssim", "matching_loss", "cpu_seconds")]
        print(f"| {arm} | " + " | ".join(cells) + " |")


def _mean(rows: list[dict[str, Any]], arm: str, name: str) -> str:
    values = [row[name] for row in rows if row["arm"] == arm and row.get(name) is not None]
    return f"{statistics.mean(values):.3f}" if values else "–"


if __name__ == "__main__":
    main()
