"""Clients of the FedAvg-leakage paper and what the server sees of one, for the benchmarks that attack one at a time.

`femnist_like_10k` holds EMNIST characters made to look like FEMNIST, without writers: not the paper's data. Clients of
`cifar100_3k` are 50 consecutive images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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

SEED = 0
NUM_IMAGES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperClients:
    """A data set of the paper, with its network; not `reproduction.data`, which a machine with torch alone lacks.

    Attributes:
        file: Its file name.
        spec: Public facts.
        model: A name of MODELS.
        threshold_db: An image is recovered strictly above it.
    """

    file: str
    spec: DatasetSpec
    model: str
    threshold_db: float

    def private_batch(self, folder: Path, client: int, num_images: int = NUM_IMAGES) -> tuple[Tensor, Tensor]:
        """Return pixels (N, C, H, W) in [0, 1] and labels (N,): the client's first, then those of the next ones."""
        images, labels, own, _ = self._read(folder, client, num_images)
        return images[own], labels[own]

    def others(self, folder: Path, client: int, num_images: int = NUM_IMAGES) -> Tensor:
        """Return the pixels (P, C, H, W) of all who own none of a private batch: what guesses are made of."""
        images, _, _, others = self._read(folder, client, num_images)
        return images[others]

    def _read(self, folder: Path, client: int, num_images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all pixels and labels, and the indices of a private batch and of the other clients' images."""
        with np.load(folder / self.file) as arrays:
            groups = arrays["clients"] if "clients" in arrays else np.arange(len(arrays["labels"])) // NUM_IMAGES
            if not 0 <= client <= groups.max():
                raise SystemExit(f"error: {self.file} has no client {client}; choose among 0 to {groups.max()}")
            own = np.flatnonzero(groups >= client)
            own = own[np.argsort(groups[own], kind="stable")][:num_images]
            images = torch.from_numpy(arrays["images"]).float() / 255
            pixels = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
            others = np.flatnonzero(~np.isin(groups, groups[own]))
            labels = torch.from_numpy(arrays["labels"]).long()
            return pixels, labels, torch.from_numpy(own), torch.from_numpy(others)

    def observe(
        self,
        images: Tensor,
        labels: Tensor,
        client: int,
        recipe: LocalTraining,
        threat_model: ThreatModel,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Observation:
        """Train a client on the CPU, so that all devices attack the same update, and return what the server sees.

        Args:
            images: Pixels (N, C, H, W) in [0, 1].
            labels: (N,), int64.
            client: Names the order of its batches.
            recipe: How it trains.
            threat_model: What the server knows.
            parameters: Where it starts; ``None`` starts untrained.
        """
        model = MODELS[self.model](dataset=self.spec, generator=generator(SEED, "model"))
        if parameters is not None:
            model.load_state_dict(dict(parameters))
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
            dataset=self.spec,
            record=record,
            update=update,
            local_training=recipe,
            label_counts=torch.bincount(labels, minlength=self.spec.num_classes),
        )


def _spec(
    shape: tuple[int, int, int], num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> DatasetSpec:
    names = tuple(str(label) for label in range(num_classes))
    return DatasetSpec(image_shape=shape, num_classes=num_classes, mean=mean, std=std, class_names=names)


FEMNIST = PaperClients(
    file="femnist_like_10k.npz",
    spec=_spec((1, 28, 28), 62, (0.9642384386141873,), (0.15767843198426892,)),
    model="femnist_cnn",
    threshold_db=20.0,
)
CIFAR100 = PaperClients(
    file="cifar100_3k.npz",
    spec=_spec((3, 32, 32), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    model="cifar_cnn",
    threshold_db=19.0,
)
PAPER_CLIENTS = {"femnist_like": FEMNIST, "cifar100": CIFAR100}
