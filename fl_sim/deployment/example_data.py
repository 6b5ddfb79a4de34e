"""Divides the digits among machines, as a deployment has them: ``python -m fl_sim.deployment.example_data FOLDER``.

    client-0/images.npz    private: SuperNode 0 only
    public/images.npz      the server: a test set that no client holds

The files are those of the data set ``arrays``.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_sim.datasets import DATASETS
from fl_sim.datasets.partitioning import iid
from fl_sim.errors import ConfigError, FlSimError


def write_example_data(folder: Path, *, num_clients: int, examples_per_client: int | None = None) -> None:
    """Write one file for each client and a public one.

    Args:
        folder: Made by this function.
        num_clients: Number of clients.
        examples_per_client: Images of each client at most; ``None`` divides all.

    Raises:
        ConfigError: If the folder is there already.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already; name a new folder, or remove it") from error
    digits = DATASETS["digits"]()
    shares = iid(dataset=digits, num_clients=num_clients, generator=torch.Generator().manual_seed(0))
    for client_id, rows in enumerate(shares):
        own = rows[:examples_per_client]
        _write(folder / f"client-{client_id}", digits.images[own], digits.labels[own], client_id)
    # A client id beyond those of the federation: nobody's images.
    _write(folder / "public", digits.test_images, digits.test_labels, num_clients)


def _write(folder: Path, images: Tensor, labels: Tensor, client_id: int) -> None:
    folder.mkdir()
    np.savez_compressed(
        folder / "images.npz",
        images=images[:, 0].numpy(),
        labels=labels.numpy(),
        clients=np.full(len(labels), client_id),
    )


def main(arguments: list[str]) -> None:
    """Read the command line and write the data; the exit code is 2 for a wrong argument.

    Args:
        arguments: The folder, the number of clients and of their images.
    """
    parser = argparse.ArgumentParser(description="Divide the digits into private folders and a public one.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--examples-per-client", type=int)
    chosen = parser.parse_args(arguments)
    try:
        write_example_data(chosen.folder, num_clients=chosen.clients, examples_per_client=chosen.examples_per_client)
    except FlSimError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
