"""What an estimate of N_c is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NumExamplesEstimate:
    """N_c as the update tells it.

    Attributes:
        num_examples: The likeliest number of images.
        low: Lower end of a 90 % interval, as the method reckons it.
        high: Its upper end; equal to ``low`` where the method counts.
        method: What it was read from, in words.
    """

    num_examples: int
    low: int
    high: int
    method: str
