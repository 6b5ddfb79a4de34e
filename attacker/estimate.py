"""A mean with its standard error: how every number over clients, rounds and seeds is stated."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of independent values.

    Attributes:
        mean: The mean.
        standard_error: Of the mean; ``None`` for a single value.
        number: How many values.
    """

    mean: float
    standard_error: float | None
    number: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of some values with its standard error; ``None`` for none."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(mean=statistics.fmean(values), standard_error=error, number=len(values))
