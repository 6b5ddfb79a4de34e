"""The command line, and the composition root: the only package that may import platform, clients and attacker."""

import os

if "RAY_ADDRESS" not in os.environ:
    # Read by Ray when it is imported: one of this machine alone then listens on the loopback interface only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from fl_sim.cli.main import app

__all__ = ["app"]
