"""``python -m fl_sim.cli``: the command line without its script."""

from fl_sim.cli import app

if __name__ == "__main__":
    app()
