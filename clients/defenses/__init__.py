"""Defenses of a client: one file each, one line in DEFENSES.

An experiment lists them in the order in which they are applied. Every defense that is called with an update also takes
the option ``where``: ``"update"`` (the default), ``"step"`` (the gradient of each local step) or ``"example"`` (the
gradient of each image of each step), in the rising order example, step, update:

    [[defenses]]
    name = "clipping"
    options = { clip_norm = 1.0, where = "example" }

    [[defenses]]
    name = "gaussian_noise"
    options = { stddev = 0.01, where = "step" }

Those that compute the gradient themselves (``dp_sgd``, ``soteria``) stand first and have no ``where``.
"""

from collections.abc import Callable

from clients.defenses.clipping import Clipping
from clients.defenses.defense import Defense, GradientDefense, PrivateGradientDefense, chain
from clients.defenses.dp_sgd import DpSgd
from clients.defenses.gaussian_noise import GaussianNoise
from clients.defenses.laplace_noise import LaplaceNoise
from clients.defenses.places import PLACES, ClientDefenses, Place, arrange
from clients.defenses.pruning import MagnitudePruning, RandomPruning
from clients.defenses.quantisation import Quantisation
from clients.defenses.sign import Sign
from clients.defenses.soteria import Soteria
from clients.defenses.top_k import TopK
from fl_sim.tables import Table, class_called_with

DEFENSES: Table[Callable[..., Defense | GradientDefense]] = Table(
    "defense",
    {
        "clipping": Clipping,
        "gaussian_noise": GaussianNoise,
        "laplace_noise": LaplaceNoise,
        "magnitude_pruning": MagnitudePruning,
        "random_pruning": RandomPruning,
        "top_k": TopK,
        "sign": Sign,
        "quantisation": Quantisation,
        "dp_sgd": DpSgd,
        "soteria": Soteria,
    },
    check=class_called_with("num_examples", "generator", or_method="gradient"),
)

__all__ = [
    "DEFENSES",
    "PLACES",
    "ClientDefenses",
    "Defense",
    "GradientDefense",
    "Place",
    "PrivateGradientDefense",
    "arrange",
    "chain",
]
