"""The only source of randomness: one run seed, split by purpose and ids.

    seed(purpose, ids) = first 63 bits of SHA-256("run_seed/purpose/id/…")

Two purposes never share a stream, so that adding a client or a round leaves every other draw as it was, and the order
in which clients answer changes nothing.
"""

import hashlib

import torch


def derive_seed(run_seed: int, purpose: str, *ids: int | str) -> int:
    """Derive the seed of one stream.

    Args:
        run_seed: The seed of the run or of the attack.
        purpose: What is drawn, for instance ``"batch-order"``.
        *ids: Whose draw it is, for instance a client id and a round.

    Returns:
        An integer in ``[0, 2**63)``.
    """
    path = "/".join(str(part) for part in (run_seed, purpose, *ids))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, *ids: int | str) -> torch.Generator:
    """Return a CPU generator for one stream; see `derive_seed` for the arguments."""
    return torch.Generator().manual_seed(derive_seed(run_seed, purpose, *ids))
