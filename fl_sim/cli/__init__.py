"""The command line, and the composition root: the only package that may import platform, clients and attacker."""

from fl_sim.cli.main import app

__all__ = ["app"]
