"""Engines that run the same ServerApp and ClientApp: Flower's simulation on Ray, and one process for tests."""

from fl_sim.engines.in_process import run_in_process
from fl_sim.engines.ray_simulation import run_on_ray
from fl_sim.tables import Table

ENGINES = Table("engine", {"ray": run_on_ray, "inprocess": run_in_process})

__all__ = ["ENGINES", "run_in_process", "run_on_ray"]
