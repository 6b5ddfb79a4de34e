"""A `Score` as strict JSON: no NaN, no infinity, numbers rounded to what the measurement carries.

A score is finite by construction (PSNR is capped, unmatched images are ``None``); a number that is not becomes ``null``
where null has a meaning, and is refused elsewhere.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, fields
from typing import Any, cast

from attacker.baselines import Baseline
from attacker.scoring import Identifiability, Score
from fl_sim.errors import RecordingError, brief

DIGITS = 6


def score_to_json(score: Score) -> dict[str, Any]:
    """Return a dictionary that ``json.dumps(..., allow_nan=False)`` accepts."""
    return {name: _plain(value) for name, value in asdict(score).items()}


def score_from_json(data: Mapping[str, Any]) -> Score:
    """Read back what `score_to_json` wrote.

    Raises:
        RecordingError: If a name is missing or unknown, or a value is not what it should be.
    """
    _check_names("score", data, {field.name for field in fields(Score)}, optional={"identifiability"})
    try:
        return Score(
            matching=_integers(data["matching"]),
            psnr_db=_optional_numbers(data["psnr_db"]),
            ssim=_optional_numbers(data["ssim"]),
            lpips=None if data["lpips"] is None else _optional_numbers(data["lpips"]),
            threshold_db=_number(data["threshold_db"]),
            recovered_share=_number(data["recovered_share"]),
            mean_psnr_db=_optional_number(data["mean_psnr_db"]),
            mean_ssim=_optional_number(data["mean_ssim"]),
            mean_lpips=_optional_number(data["mean_lpips"]),
            label_counts=_integers(data["label_counts"]),
            recovered_label_counts=_integers(data["recovered_label_counts"]),
            label_count_error=_integer(data["label_count_error"]),
            baselines=tuple(_baseline(entry) for entry in data["baselines"]),
            identifiability=_identifiability(data.get("identifiability")),
        )
    except (TypeError, AttributeError) as error:
        raise RecordingError(
            f"score: a value has the wrong type ({brief(error)}); the file is damaged or foreign"
        ) from error


def _baseline(data: Mapping[str, Any]) -> Baseline:
    _check_names("baseline", data, {field.name for field in fields(Baseline)}, optional={"iip"})
    return Baseline(
        name=str(data["name"]),
        num_draws=_integer(data["num_draws"]),
        mean_psnr_db=_number(data["mean_psnr_db"]),
        stddev_psnr_db=_number(data["stddev_psnr_db"]),
        mean_ssim=_number(data["mean_ssim"]),
        mean_lpips=_optional_number(data["mean_lpips"]),
        recovered_share=_number(data["recovered_share"]),
        iip=_optional_number(data.get("iip")),
    )


def _identifiability(data: Mapping[str, Any] | None) -> Identifiability | None:
    if data is None:
        return None
    _check_names("identifiability", data, {field.name for field in fields(Identifiability)})
    return Identifiability(
        extractor=str(data["extractor"]),
        pool_size=_integer(data["pool_size"]),
        identified=tuple(_optional_truth(value) for value in data["identified"]),
        precision=_number(data["precision"]),
    )


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in cast(Iterable[object], value)]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in cast(dict[str, object], value).items()}
    return value


def _check_names(what: str, data: Mapping[str, Any], expected: set[str], optional: Set[str] = frozenset()) -> None:
    # Scores of runs from before a metric existed lack its name, and are as good as ever.
    wrong = expected.symmetric_difference(data) - (optional - data.keys())
    if wrong:
        raise RecordingError(f"{what}: missing or unknown names {brief(sorted(wrong))}; is it of another version?")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)


def _optional_number(value: object) -> float | None:
    return None if value is None else _number(value)


def _optional_numbers(values: Iterable[object]) -> tuple[float | None, ...]:
    return tuple(_optional_number(value) for value in values)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def _optional_truth(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"expected true, false or null, got {value!r}")
    return value


def _integers(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(_integer(value) for value in values)
