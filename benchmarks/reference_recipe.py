"""Quality of the FedAvg-leakage attack in its authors' setting, and how long a step takes.

    python benchmarks/reference_recipe.py --epochs 1 10 --clients 100 101 102 103 --output /tmp/reference.json

    python benchmarks/reference_recipe.py --data cifar100 --attack feature_span --epochs 10 --clients 1
    python benchmarks/reference_recipe.py --attack feature_span --epochs 10 --clients 0 --run RUN --round 11 --every 50

The paper's network with LeCun-normal weights, N_c = 50, m = 5, eta = 0.004, random batch order, label counts granted.
PSNR by optimal assignment over the batch, and the share of images above 20 dB (CIFAR-100: 19 dB); once with
reconstructions as they come out of the optimisation, as the authors measure, and once clipped to [0, 1]; beside them
what guesses score that are made of other clients' images. ``--run`` starts clients from a network that a run's server
sent out, such as those that `fl-sim reproduce table7` leaves.

The reference implementation measured, on data similar to FEMNIST's stand-in, 20.8 dB / 58 % at E = 10 (2 clients) and
18.6 dB / 22 % at E = 1 (4 clients).

Needs ../shared/data: femnist_like_10k.npz, EMNIST characters made to look like FEMNIST, without writers, or
cifar100_3k.npz. Hyper-parameters are tuned on clients 0 to 49 of the one and 0 to 29 of the other.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_clients import NUM_IMAGES, PAPER_CLIENTS, SEED
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.attack import Attack, OnStep, Progress
from attacker.baselines import trivial_baselines
from attacker.observation import Observation
from attacker.recipes import ATTACKS, FedAvgLeakage
from attacker.recipes.fedavg_leakage import average_over_epochs
from attacker.threat_models import THREAT_MODELS
from fl_sim.options import build
from fl_sim.parameters import Parameters
from fl_sim.recording_store import RecordingStore
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

DATA = Path(__file__).parents[2] / "shared" / "data"
BATCH_SIZE = 5
LEARNING_RATE = 0.004


def psnr_db(reconstructions: Tensor, originals: Tensor) -> Tensor:
    """Return (N,), dB, after the assignment of highest total; nothing is clipped here."""
    squared = torch.cdist(originals.flatten(1).double(), reconstructions.flatten(1).double()).square()
    decibels = -10 * torch.log10((squared / originals[0].numel()).clamp_min(1e-10))
    rows, columns = linear_sum_assignment(decibels.numpy(), maximize=True)
    return decibels[rows, columns]


def sent_out(run: Path, server_round: int) -> Parameters:
    """Return w_t, what the server of a run sent out in a round."""
    return RecordingStore(run / "recording").read_round(server_round, clients=()).global_parameters


def attack_pixels(
    attack: Attack, observation: Observation, client_id: int, show: OnStep
) -> tuple[Tensor, Tensor, list[float]]:
    """Return images (N, C, H, W), unclipped where the attack tells them, their labels, and the time of a step."""
    times = [time.perf_counter()]

    def on_step(progress: Progress) -> None:
        times.append(time.perf_counter())
        show(progress)

    randomness = generator(SEED, "attack", client_id)
    if isinstance(attack, FedAvgLeakage):
        problem, optimum = attack.search(observation, generator=randomness, on_step=on_step)
        return average_over_epochs(problem, optimum.variables), problem.labels, np.diff(times).tolist()
    reconstruction = attack(observation, generator=randomness, on_step=on_step)
    return reconstruction.images, reconstruction.labels, np.diff(times).tolist()


def setting_of(data: str) -> argparse.Namespace:
    """Return the paper's setting for `measure`: untrained network, label counts known (an upper bound)."""
    return argparse.Namespace(
        data=data,
        batch_size=BATCH_SIZE,
        images=NUM_IMAGES,
        threat_model="known_label_counts",
        parameters=None,
        every=0,
    )


def measure(attack: Attack, client_id: int, epochs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Attack one client and score it."""
    data = PAPER_CLIENTS[arguments.data]
    recipe = LocalTraining(epochs=epochs, batch_size=arguments.batch_size, learning_rate=LEARNING_RATE)
    images, labels = data.private_batch(DATA, client_id, arguments.images)
    threat_model = THREAT_MODELS[arguments.threat_model]
    observation = data.observe(images, labels, client_id, recipe, threat_model, arguments.parameters)

    def show(progress: Progress) -> None:
        if arguments.every and progress.images is not None and progress.step % arguments.every == 0:
            decibels = psnr_db(progress.images().clamp(0, 1), images)
            share = (decibels > data.threshold_db).double().mean().item()
            print(f"step {progress.step}: {decibels.mean().item():.2f} dB, {share:.0%}", flush=True)

    cpu_started = time.process_time()
    pixels, recovered, seconds = attack_pixels(attack, observation, client_id, show)
    cpu_seconds = time.process_time() - cpu_started
    raw, clipped = psnr_db(pixels, images), psnr_db(pixels.clamp(0, 1), images)
    counts = [torch.bincount(values, minlength=data.spec.num_classes) for values in (labels, recovered)]
    mean_image, random_images = trivial_baselines(
        images,
        data.others(DATA, client_id, arguments.images),
        threshold_db=data.threshold_db,
        generator=generator(SEED, "baselines", client_id),
    )
    return {
        "epochs": epochs,
        "client": client_id,
        "mean_image_psnr_db": mean_image.mean_psnr_db,
        "mean_image_recovered_share": mean_image.recovered_share,
        "random_images_psnr_db": random_images.mean_psnr_db,
        "random_images_recovered_share": random_images.recovered_share,
        "psnr_db": raw.mean().item(),
        "recovered_share": (raw > data.threshold_db).double().mean().item(),
        "clipped_psnr_db": clipped.mean().item(),
        "clipped_recovered_share": (clipped > data.threshold_db).double().mean().item(),
        "wrong_labels": int((counts[0] - counts[1]).abs().sum()) // 2,
        "seconds_per_step": statistics.median(seconds) if seconds else 0.0,
        "cpu_seconds": cpu_seconds,
        "cpu_seconds_per_step": cpu_seconds / max(1, len(seconds)),
    }


def main() -> None:
    """Measure each E on each client, and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=PAPER_CLIENTS, default="femnist_like")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 101, 102, 103])
    parser.add_argument("--attack", default="fedavg_leakage")
    parser.add_argument("--options", type=json.loads, default={}, help='JSON, for instance {"loss": "cosine"}')
    parser.add_argument("--threat-model", default="known_label_counts")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="m")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="N_c, the client's first images")
    parser.add_argument("--run", type=Path, help="folder of a run whose network clients start from")
    parser.add_argument("--round", type=int, default=1, help="of that run: what its server sent out then")
    parser.add_argument("--every", type=int, default=0, help="steps between two lines about the images so far")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.parameters = None if arguments.run is None else sent_out(arguments.run, arguments.round)
    torch.set_num_threads(1)
    attack = build(ATTACKS[arguments.attack], arguments.options, where="--options")
    results: list[dict[str, Any]] = []
    for epochs in arguments.epochs:
        for client_id in arguments.clients:
            results.append(measure(attack, client_id, epochs, arguments))
            print(json.dumps(results[-1]), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps({"attack": repr(attack), "results": results}, indent=2))
        own = [result for result in results if result["epochs"] == epochs]
        means = {key: statistics.mean(result[key] for result in own) for key in own[0] if key != "client"}
        print("mean", json.dumps({key: round(value, 4) for key, value in means.items()}), flush=True)


if __name__ == "__main__":
    main()
