"""Data sets: one file each; `DATASETS` names them.

A data set is a function of keyword options, each with a default, that returns a `Dataset`.
"""

from collections.abc import Callable

from fl_sim.datasets.arrays import arrays
from fl_sim.datasets.cifar import cifar10, cifar100
from fl_sim.datasets.dataset import Dataset, pixels
from fl_sim.datasets.digits import digits
from fl_sim.datasets.faces import faces
from fl_sim.datasets.femnist import femnist
from fl_sim.datasets.folder import folder
from fl_sim.tables import Table, function_to

DATASETS: Table[Callable[..., Dataset]] = Table(
    "data set",
    {
        "digits": digits,
        "faces": faces,
        "arrays": arrays,
        "folder": folder,
        "femnist": femnist,
        "cifar10": cifar10,
        "cifar100": cifar100,
    },
    check=function_to(Dataset),
)

__all__ = ["DATASETS", "Dataset", "pixels"]
