"""The central test set of a source that comes without one: which images are held out, the same in every run.

no natural clients   an evenly spaced share of every class
natural clients      whole clients, from the highest ids; all other clients keep all their images and their ids
share 0              nothing; accuracy is then measured on the clients' own images
"""

import torch
from torch import Tensor

from fl_sim.datasets.dataset import Dataset
from fl_sim.errors import ConfigError
from fl_sim.records import DatasetSpec

# Part of the definition of every data set: another value would put other images into the test sets.
_ORDER_SEED = 2022


def with_held_out_test_set(
    *,
    name: str,
    images: Tensor,
    labels: Tensor,
    spec: DatasetSpec,
    test_fraction: float,
    clients: Tensor | None = None,
) -> Dataset:
    """Split a source into the clients' images and a central test set; both keep the source's order.

    Args:
        name: Name of the data set.
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
        spec: Public facts.
        test_fraction: Share of the images, or of the natural clients, in [0, 1).
        clients: (N,), int64, the natural client of each image.

    Raises:
        ConfigError: If the share is out of range or leaves no image to one of the two sides.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction must be in [0, 1), got {test_fraction}")
    if test_fraction == 0:
        return Dataset(
            name=name,
            images=images,
            labels=labels,
            spec=spec,
            clients=clients,
            test_images=images,
            test_labels=labels,
        )
    held_out = stratified(labels, test_fraction) if clients is None else last_clients(clients, test_fraction)
    return Dataset(
        name=name,
        images=images[~held_out],
        labels=labels[~held_out],
        spec=spec,
        clients=None if clients is None else clients[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
    )


def stratified(labels: Tensor, fraction: float) -> Tensor:
    """Choose the same share of every class, up to one image.

    Args:
        labels: (N,), int64.
        fraction: Share, in (0, 1).

    Returns:
        (N,), bool, with ``round(fraction * N)`` images chosen, at least one.

    Raises:
        ConfigError: If nothing is left.
    """
    num_images = len(labels)
    num_held_out = max(1, round(fraction * num_images))
    if num_held_out >= num_images:
        raise ConfigError(f"test_fraction {fraction} leaves no image of {num_images}; lower it, or 0 to hold out none")
    shuffled = torch.randperm(num_images, generator=torch.Generator().manual_seed(_ORDER_SEED))
    by_class = shuffled[torch.sort(labels[shuffled], stable=True).indices]
    # Evenly spaced places of the class-sorted order fall into every class in proportion.
    places = (2 * torch.arange(num_held_out) + 1) * num_images // (2 * num_held_out)
    chosen = torch.zeros(num_images, dtype=torch.bool)
    chosen[by_class[places]] = True
    return chosen


def last_clients(clients: Tensor, fraction: float) -> Tensor:
    """Choose whole clients, from the highest ids.

    Args:
        clients: (N,), int64.
        fraction: Share of the clients, in (0, 1).

    Returns:
        (N,), bool, with the images of ``round(fraction * clients)`` clients chosen, at least one client.

    Raises:
        ConfigError: If no client is left.
    """
    ids = clients.unique()
    num_held_out = max(1, round(fraction * len(ids)))
    if num_held_out >= len(ids):
        raise ConfigError(
            f"test_fraction {fraction} leaves none of {len(ids)} clients; lower it, or 0 to hold out none"
        )
    return clients >= ids[-num_held_out]
