"""Checks of hyper-parameters: one sentence that names the field, what was expected and what was got."""

import math


def check_at_least_one(**values: int) -> None:
    """Raise ``ValueError`` for the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


def check_positive(**values: float | None) -> None:
    """Raise ``ValueError`` for the first value that is not a positive number; ``None`` passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


def check_not_negative(**values: float | None) -> None:
    """Raise ``ValueError`` for the first value that is negative or not finite; ``None`` passes."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
