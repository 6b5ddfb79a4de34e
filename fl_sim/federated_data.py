"""Who holds which images: data set, partition and seed become one index list per client.

Clients and the reader of truth compute it alike from the same configuration; no image is ever copied into a run.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache

from torch import Tensor

from fl_sim.config import DataConfig, parse_data
from fl_sim.datasets import DATASETS, Dataset
from fl_sim.datasets.partitioning import PARTITIONERS, cap
from fl_sim.errors import MissingDataError
from fl_sim.options import build
from fl_sim.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedData:
    """A data set and its division among clients.

    Attributes:
        dataset: All images.
        client_indices: For each client the rows it holds, in its own order; the lists are disjoint.
    """

    dataset: Dataset
    client_indices: tuple[Tensor, ...]

    def images(self, client_id: int) -> Tensor:
        """Return the client's images, uint8 (N_c, C, H, W).

        Raises:
            MissingDataError: If the client's images are on another machine.
        """
        return self.dataset.images[self._rows(client_id)]

    def labels(self, client_id: int) -> Tensor:
        """Return the client's labels, int64 (N_c,).

        Raises:
            MissingDataError: If the client's images are on another machine.
        """
        return self.dataset.labels[self._rows(client_id)]

    def _rows(self, client_id: int) -> Tensor:
        rows = self.client_indices[client_id]
        if not len(rows):
            raise MissingDataError(f"this machine's data set {self.dataset.name!r} has no image of client {client_id}")
        return rows


def load_federated_data(data: DataConfig, seed: int) -> FederatedData:
    """Load the data set and divide it among the clients; cached in this process.

    Args:
        data: Section ``data`` of the experiment.
        seed: The run seed.

    Raises:
        ConfigError: If an option does not fit, or the data cannot be divided as asked.
        MissingDataError: If a file is not there.
    """
    return _load(json.dumps(asdict(data), sort_keys=True), seed)


@lru_cache(maxsize=2)
def _load(data_json: str, seed: int) -> FederatedData:
    data = parse_data(json.loads(data_json))
    dataset = build(DATASETS[data.dataset], data.options, where="data.options")
    indices = build(
        PARTITIONERS[data.partition],
        data.partition_options,
        where="data.partition_options",
        dataset=dataset,
        num_clients=data.num_clients,
        generator=generator(seed, "partition"),
    )
    if data.examples_per_client is not None:
        indices = cap(indices, data.examples_per_client)
    return FederatedData(dataset=dataset, client_indices=indices)
