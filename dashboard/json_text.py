"""Views as strict JSON: no NaN, no infinity, numbers rounded to what a page can show."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

_DIGITS = 6


def json_bytes(view: object) -> bytes:
    """Return a view, a tree of dataclasses, tuples and plain values, as JSON."""
    return json.dumps(_plain(view), allow_nan=False, separators=(",", ":")).encode()


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in cast(Iterable[object], value)]
    return value if isinstance(value, int) else str(value)


def _number(value: float) -> float | None:
    """Keep six significant digits; what is not finite is nothing that a page could draw."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
