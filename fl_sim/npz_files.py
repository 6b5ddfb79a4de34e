"""Files of NumPy arrays from elsewhere, read without pickle: a foreign file cannot run code."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from fl_sim.errors import ConfigError, brief


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an ``.npz`` file, without pickle.

    Raises:
        ConfigError: If it is none.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, NpzFile):
            with archive:
                return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{path}: expected an .npz file without pickled objects, got: {brief(error)}; write arrays of numbers with "
            "numpy.savez(path, *arrays)"
        ) from error
    raise ConfigError(f"{path}: expected an .npz file, got a single array (.npy)")
