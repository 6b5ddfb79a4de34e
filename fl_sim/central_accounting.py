"""What central differential privacy guarantees after some rounds: epsilon by Opacus' accountant.

Each published model is one Gaussian mechanism on the sum of clipped updates (sensitivity C, noise z C). Clients are
taken to be in every round: the draw of clients is not counted as secret, since the server and every client asked know
it.
"""

import importlib
from typing import Any

from fl_sim.errors import MissingDataError
from fl_sim.server_privacy import CentralPrivacy


def central_epsilon(privacy: CentralPrivacy, num_releases: int) -> float | None:
    """Return epsilon at ``privacy.delta``, for adding or removing all data of one client.

    Args:
        privacy: Clipping and noise.
        num_releases: Published models that training has changed.

    Returns:
        Epsilon, or ``None`` where there is no guarantee: without noise.

    Raises:
        MissingDataError: If Opacus is not installed.

    References:
        Mironov, Renyi Differential Privacy, CSF 2017, Proposition 7 and Table II (Gaussian mechanism, composition).
    """
    if num_releases == 0:
        return 0.0
    if privacy.noise_multiplier == 0:
        return None
    try:
        accountant = importlib.import_module("opacus.accountants").RDPAccountant()  # only who asks needs Opacus
    except ImportError as error:
        raise MissingDataError(f"epsilon needs Opacus ({error}); install it: pip install opacus") from error
    accountant.history = [(privacy.noise_multiplier, 1.0, num_releases)]
    return float(accountant.get_epsilon(privacy.delta))


def central_guarantee(privacy: CentralPrivacy, num_releases: int) -> dict[str, Any]:
    """Return the guarantee as plain data for the recording, with what it assumes; ``epsilon`` is ``None`` without one.

    Args:
        privacy: Clipping and noise.
        num_releases: Published models that training has changed.
    """
    notice = "" if privacy.noise_multiplier else "no noise, no guarantee"
    try:
        epsilon = central_epsilon(privacy, num_releases)
    except MissingDataError as error:
        epsilon, notice = None, str(error)
    return {
        "epsilon": epsilon,
        "delta": privacy.delta,
        "num_releases": num_releases,
        "clip_norm": privacy.clip_norm,
        "noise_multiplier": privacy.noise_multiplier,
        "accountant": "Renyi differential privacy (Opacus)",
        "neighbours": "all data of one client added or removed",
        "subsampling": "not counted: the server and the clients know who is asked",
        "notice": notice,
    }
