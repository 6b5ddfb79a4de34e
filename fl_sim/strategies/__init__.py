"""Aggregation on the server: what an honest server does with the replies."""

from fl_sim.strategies.reproducible_fedavg import ReproducibleFedAvg
from fl_sim.strategies.reproducible_fedsgd import ReproducibleFedSGD

__all__ = ["ReproducibleFedAvg", "ReproducibleFedSGD"]
