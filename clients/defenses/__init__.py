"""Defenses that a client applies to its update before it leaves: one file each, one line in DEFENSES.

An experiment lists them in the order in which they are applied:

    [[defenses]]
    name = "clipping"
    options = { clip_norm = 1.0 }
"""

from collections.abc import Callable

from clients.defenses.clipping import Clipping
from clients.defenses.defense import Defense, chain
from clients.defenses.gaussian_noise import GaussianNoise
from clients.defenses.laplace_noise import LaplaceNoise
from clients.defenses.pruning import MagnitudePruning, RandomPruning
from fl_sim.tables import Table

DEFENSES: Table[Callable[..., Defense]] = Table(
    "defense",
    {
        "clipping": Clipping,
        "gaussian_noise": GaussianNoise,
        "laplace_noise": LaplaceNoise,
        "magnitude_pruning": MagnitudePruning,
        "random_pruning": RandomPruning,
    },
)

__all__ = ["DEFENSES", "Defense", "chain"]
