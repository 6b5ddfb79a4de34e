"""Aggregation on the server: what an honest server does with the replies."""

from fl_sim.strategies.centrally_private import CentrallyPrivate, check_private_model
from fl_sim.strategies.later_rounds import LaterRounds
from fl_sim.strategies.reproducible_fedavg import ReproducibleFedAvg
from fl_sim.strategies.reproducible_fedsgd import ReproducibleFedSGD

__all__ = ["CentrallyPrivate", "LaterRounds", "ReproducibleFedAvg", "ReproducibleFedSGD", "check_private_model"]
