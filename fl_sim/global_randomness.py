"""Flower's noise, rounding and shuffles draw from process-wide generators: seeded here for a moment, and put back.

Nobody else's draws change, and a run repeats.
"""

import contextlib
import random
from collections.abc import Generator

import numpy as np

from fl_sim.seeds import derive_seed


@contextlib.contextmanager
def seeded_global_randomness(run_seed: int, purpose: str, *ids: int | str) -> Generator[None]:
    """Seed ``random`` and ``numpy.random`` inside the block; afterwards they go on where they were.

    Args:
        run_seed: The run seed.
        purpose: What is drawn, see `fl_sim.seeds.derive_seed`.
        *ids: Whose draw it is.
    """
    seed = derive_seed(run_seed, purpose, *ids)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])  # numpy takes a seed in words of 32 bits
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
