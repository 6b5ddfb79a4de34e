"""What the server does for its clients' privacy: noise in what it publishes, or never seeing a single update.

Both are agreed upon before training; the recording's manifest names them.
"""

import math
from dataclasses import dataclass, replace

MOST_MODULUS = 2**32
_DEFAULT_MAX_WEIGHT = 1000.0  # Flower's own, where nothing bounds N_c


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralPrivacy:
    """Central differential privacy for clients: updates are clipped, averaged with equal weights, and noised.

    It protects against who sees the published models; the server itself still sees every raw update.

    Attributes:
        clip_norm: C, largest L2 norm of what counts of a client: of ``w_c - w_t`` (FedAvg) or of the gradient (FedSGD);
            > 0.
        noise_multiplier: z; the average of n clients gets Gaussian noise of standard deviation z C / n; 0 adds none.
        delta: Of the (epsilon, delta) guarantee, in (0, 1).

    References:
        McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, Algorithm 1.
    """

    clip_norm: float
    noise_multiplier: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be a positive number, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be a number >= 0, got {self.noise_multiplier}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregation:
    """The agreed numbers of the SecAgg+ protocol; the names are Flower's.

    Attributes:
        num_shares: Clients among which each one's secrets are shared, itself included: an odd number >= 3, or a share
            of the round's clients in (0, 1]. 1 is all of them.
        reconstruction_threshold: Shares that rebuild a secret: a whole number >= 2 and below ``num_shares``, or a share
            of them in (0, 1]. So many clients must stay to the end of a round; fewer colluding ones learn nothing.
        clipping_range: Entries of ``N_c / max_weight * w_c`` are clipped to plus or minus this before they become
            integers.
        quantization_range: Number of integers that the clipping range is divided into.
        modulus_range: Masks are drawn from, and sums are taken modulo, this power of two, at most 2^32.
        max_weight: Largest N_c allowed; ``None`` takes ``data.examples_per_client``, or 1000 without it. The error of a
            client's values is up to ``2 clipping_range / quantization_range * max_weight / N_c``: keep it low.

    References:
        Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020.
    """

    num_shares: int | float = 1.0
    reconstruction_threshold: int | float = 0.67
    clipping_range: float = 8.0
    quantization_range: int = 2**22
    modulus_range: int = MOST_MODULUS
    max_weight: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares, threshold = self.num_shares, self.reconstruction_threshold
        # For an even number, Flower tells clients of one share fewer than it has neighbours for.
        if not (0 < shares <= 1 or (isinstance(shares, int) and shares >= 3 and shares % 2)):
            raise ValueError(f"num_shares must be an odd number >= 3 or a share in (0, 1], got {shares}")
        if not (0 < threshold <= 1 or (isinstance(threshold, int) and threshold >= 2)):
            raise ValueError(
                f"reconstruction_threshold must be a whole number >= 2 or a share in (0, 1], got {threshold}"
            )
        if shares > 1 and threshold >= shares:
            raise ValueError(f"reconstruction_threshold must be below num_shares = {shares}, got {threshold}")
        if not 0 < self.clipping_range < math.inf:
            raise ValueError(f"clipping_range must be a positive number, got {self.clipping_range}")
        if self.quantization_range < 2:
            raise ValueError(f"quantization_range must be >= 2, got {self.quantization_range}")
        modulus = self.modulus_range
        if not self.quantization_range < modulus <= MOST_MODULUS or modulus & (modulus - 1):
            raise ValueError(
                f"modulus_range must be a power of two above quantization_range = {self.quantization_range} "
                f"and at most {MOST_MODULUS}, got {modulus}"
            )
        if self.max_weight is not None and not 0 < self.max_weight < math.inf:
            raise ValueError(f"max_weight must be a positive number, got {self.max_weight}")

    @property
    def max_clients(self) -> int:
        """Clients whose sum cannot exceed the modulus."""
        return self.modulus_range // self.quantization_range

    def with_max_weight(self, examples_per_client: int | None) -> "SecureAggregation":
        """Fill in ``max_weight`` where it is not set.

        Args:
            examples_per_client: Of the experiment's section ``data``.
        """
        if self.max_weight is not None:
            return self
        return replace(self, max_weight=float(examples_per_client or _DEFAULT_MAX_WEIGHT))

    def range_of_values(self, num_examples: int) -> float:
        """Return the largest magnitude that an entry of a reply may have without being clipped.

        Args:
            num_examples: N_c.

        Raises:
            ValueError: If ``max_weight`` is not filled in.
        """
        if self.max_weight is None:
            raise ValueError("max_weight must be filled in, see with_max_weight")
        return self.clipping_range * self.max_weight / num_examples
