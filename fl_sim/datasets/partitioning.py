"""Who gets which images: disjoint index lists, one for each client, as functions of a data set and a generator.

    by_client   the source's own clients; client c holds the images of the source's client first + c, in its order
    iid         a random equal share
    dirichlet   every class divided in proportions from Dir(alpha); small alpha, strong label skew
    shards      a few class-pure pieces each

The last three cover the whole data set, and the order within a client is random, so that `cap` does not favour a class.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fl_sim.datasets.dataset import Dataset
from fl_sim.errors import ConfigError
from fl_sim.tables import Table, function_of

Partition: TypeAlias = tuple[Tensor, ...]

_MAX_DRAWS = 100


def by_client(
    *, dataset: Dataset, num_clients: int, generator: torch.Generator, first: int = 0, partial: bool = False
) -> Partition:
    """Give client c the images of the natural client ``first + c``; the other natural clients are left out.

    Args:
        dataset: A data set with natural clients.
        num_clients: Number of clients, >= 1.
        generator: Not used: nothing is drawn.
        first: Natural client that client 0 is, >= 0.
        partial: Leaves clients without images that have none in this data set, as on a machine of a deployment that
            holds the images of one client, or of none.

    Returns:
        For each client the indices of its images, int64, in the data set's order.

    Raises:
        ConfigError: If the data set has no natural clients or too few of them.
    """
    del generator
    _check_num_clients(num_clients)
    if dataset.clients is None:
        raise ConfigError(f"data set {dataset.name!r} has no natural clients; partition it by iid, dirichlet or shards")
    wanted = range(first, first + num_clients)
    available = set(dataset.clients.tolist())
    missing = next((client_id for client_id in wanted if client_id not in available), None)
    if missing is not None and not partial:
        raise ConfigError(
            f"data set {dataset.name!r} has no images of client {missing} among its {len(available)} clients "
            "(those held out for the test set not counted); lower num_clients or the data set's test_fraction"
        )
    return tuple(torch.nonzero(dataset.clients == client_id).flatten() for client_id in wanted)


def iid(*, dataset: Dataset, num_clients: int, generator: torch.Generator) -> Partition:
    """Give each client a random share; sizes differ by one at most.

    Args:
        dataset: The data set.
        num_clients: Number of clients, in [1, N].
        generator: Draws who gets what.

    Returns:
        For each client the indices of its images, int64.

    Raises:
        ConfigError: If there are fewer images than clients.
    """
    _check_num_clients(num_clients)
    _check_enough(len(dataset.labels), num_clients, "clients; lower num_clients")
    return torch.randperm(len(dataset.labels), generator=generator).tensor_split(num_clients)


def dirichlet(*, dataset: Dataset, num_clients: int, generator: torch.Generator, alpha: float = 0.5) -> Partition:
    """Divide every class among the clients in random proportions; drawn again until no client is empty.

    Args:
        dataset: The data set.
        num_clients: Number of clients, in [1, N].
        generator: Draws the proportions and who gets what.
        alpha: Concentration, > 0: 0.1 gives most clients few classes, 100 is close to iid.

    Returns:
        For each client the indices of its images, int64.

    Raises:
        ConfigError: If no draw of a hundred leaves an image to every client.

    References:
        Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
        arXiv:1909.06335, 2019 (here the proportions are drawn for each class, not for each client).
    """
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha must be a positive number, got {alpha}")
    _check_num_clients(num_clients)
    _check_enough(len(dataset.labels), num_clients, "clients; lower num_clients")
    # torch cannot draw from a Dirichlet distribution with a generator of its own.
    proportions_source = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    classes = [torch.nonzero(dataset.labels == label).flatten() for label in dataset.labels.unique().tolist()]
    for _ in range(_MAX_DRAWS):
        pieces = [
            _divide(rows, proportions_source.dirichlet(np.full(num_clients, alpha)), generator) for rows in classes
        ]
        clients = [torch.cat(own) for own in zip(*pieces, strict=True)]
        if all(len(indices) > 0 for indices in clients):
            return tuple(_shuffled(indices, generator) for indices in clients)
    raise ConfigError(
        f"dirichlet: {_MAX_DRAWS} draws with alpha {alpha} each left one of {num_clients} clients without images; "
        "raise alpha or lower num_clients"
    )


def shards(*, dataset: Dataset, num_clients: int, generator: torch.Generator, shards_per_client: int = 2) -> Partition:
    """Sort by class, cut into equal shards, and give each client the same number of them.

    Args:
        dataset: The data set.
        num_clients: Number of clients, >= 1.
        generator: Draws who gets what.
        shards_per_client: Shards of each client, >= 1; about the number of classes that it sees.

    Returns:
        For each client the indices of its images, int64.

    Raises:
        ConfigError: If there are fewer images than shards.

    References:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017, Sec. 3.
    """
    if shards_per_client < 1:
        raise ConfigError(f"shards_per_client must be >= 1, got {shards_per_client}")
    _check_num_clients(num_clients)
    num_shards = num_clients * shards_per_client
    _check_enough(len(dataset.labels), num_shards, "shards; lower num_clients or shards_per_client")
    shuffled = torch.randperm(len(dataset.labels), generator=generator)
    by_class = shuffled[torch.sort(dataset.labels[shuffled], stable=True).indices]
    pieces = by_class.tensor_split(num_shards)
    owners = torch.randperm(num_shards, generator=generator).reshape(num_clients, shards_per_client).tolist()
    return tuple(_shuffled(torch.cat([pieces[shard] for shard in own]), generator) for own in owners)


PARTITIONERS: Table[Callable[..., Partition]] = Table(
    "partition",
    {"by_client": by_client, "iid": iid, "dirichlet": dirichlet, "shards": shards},
    check=function_of("dataset", "num_clients", "generator"),
)


def cap(indices: Sequence[Tensor], examples_per_client: int | None) -> Partition:
    """Keep the first images of each client.

    Args:
        indices: For each client the indices of its images.
        examples_per_client: Images to keep at most, >= 1; ``None`` keeps all.

    Raises:
        ConfigError: If the number is less than 1.
    """
    if examples_per_client is not None and examples_per_client < 1:
        raise ConfigError(f"examples_per_client must be >= 1, got {examples_per_client}")
    return tuple(own[:examples_per_client] for own in indices)


def label_counts(labels: Tensor, indices: Sequence[Tensor], num_classes: int) -> Tensor:
    """Count the images of each class at each client: the picture of the label skew.

    Args:
        labels: (N,), int64.
        indices: For each client the indices of its images.
        num_classes: K.

    Returns:
        (clients, K), int64.
    """
    return torch.stack([torch.bincount(labels[own], minlength=num_classes) for own in indices])


def _divide(rows: Tensor, proportions: np.ndarray, generator: torch.Generator) -> Partition:
    cuts = np.rint(np.cumsum(proportions)[:-1] * len(rows)).astype(np.int64)
    return _shuffled(rows, generator).tensor_split(cuts.tolist())


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]


def _check_num_clients(num_clients: int) -> None:
    if num_clients < 1:
        raise ConfigError(f"num_clients must be >= 1, got {num_clients}")


def _check_enough(num_images: int, num_pieces: int, pieces: str) -> None:
    if num_images < num_pieces:
        raise ConfigError(f"{num_images} images are too few for {num_pieces} {pieces}")
