"""A client of `femnist_like_10k` and what the server sees of it, for the benchmarks that attack one client at a time.

The file holds EMNIST characters made to look like FEMNIST, without writers: not the paper's data.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attacker.observation import Observation
from attacker.threat_models import ThreatModel
from clients.local_training import train_locally
from fl_sim.models import MODELS
from fl_sim.records import Algorithm, ClientUpdate, DatasetSpec, LocalTraining, RoundRecord
from fl_sim.seeds import generator

FILE = "femnist_like_10k.npz"
SPEC = DatasetSpec(
    image_shape=(1, 28, 28),
    num_classes=62,
    mean=(0.9642384386141873,),
    std=(0.15767843198426892,),
    class_names=tuple(str(label) for label in range(62)),
)
SEED = 0


def private_batch(path: Path, client: int, num_images: int = 50) -> tuple[Tensor, Tensor]:
    """Return a client's first pixels (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    with np.load(path) as arrays:
        own = np.flatnonzero(arrays["clients"] == client)[:num_images]
        if not len(own):
            raise SystemExit(f"error: {path} has no client {client}; choose among 0 to {arrays['clients'].max()}")
        images = torch.from_numpy(arrays["images"][own]).unsqueeze(1).float() / 255
        return images, torch.from_numpy(arrays["labels"][own]).long()


def observe(
    images: Tensor, labels: Tensor, client: int, recipe: LocalTraining, threat_model: ThreatModel
) -> Observation:
    """Train a client on the CPU, so that all devices attack the same update, and return what the server sees."""
    model = MODELS["femnist_cnn"](dataset=SPEC, generator=generator(SEED, "model"))
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    train_locally(model, images, labels, recipe, generator=generator(SEED, "batch-order", client))
    update = ClientUpdate(
        server_round=1,
        client_id=client,
        num_examples=len(labels),
        algorithm=Algorithm.FEDAVG,
        tensors={name: tensor.detach().clone() for name, tensor in model.named_parameters()},
    )
    record = RoundRecord(server_round=1, global_parameters=start, global_buffers={}, updates=(update,), failures=())
    return threat_model.observe(
        model=model,
        dataset=SPEC,
        record=record,
        update=update,
        local_training=recipe,
        label_counts=torch.bincount(labels, minlength=SPEC.num_classes),
    )
