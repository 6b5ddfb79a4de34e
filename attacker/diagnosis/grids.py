"""Whether the entries of an update lie on a grid: that of half precision, even levels, multiples of a step.

A grid counts only where single precision is fine enough beside it that entries would miss it by chance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.parameters import Parameters
from fl_sim.records import Algorithm

_FEWEST_ENTRIES = 32
_HALF = {"bfloat16": (torch.bfloat16, 2.0**-9), "float16": (torch.float16, 2.0**-12)}
"""Types in which every value of a coarser one before it is also one, and half a unit in the last place."""
_SINGLE_PRECISION = 2.0**-24
_FINER = 32.0
"""How much finer than the grid single precision has to be."""
_MOST_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfPrecision:
    """What was rounded to half precision.

    Attributes:
        detail: What and how.
        rounded: From an update w_c - w_t to the rounded one.
    """

    detail: str
    rounded: Callable[[Parameters], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Levels on which all larger tensors lie.

    Attributes:
        detail: Which.
        steps: From one level to the next, by tensor.
        is_sign: Whether each tensor has one magnitude only.
    """

    detail: str
    steps: Mapping[str, float]
    is_sign: bool = False


def find_half_precision(
    sent: Mapping[str, Tensor],
    delta: Parameters,
    weights: Parameters,
    algorithm: Algorithm,
    *,
    learning_rate: float,
) -> HalfPrecision | None:
    """Return which half precision the sent tensors or the update have, or ``None``.

    Args:
        sent: Weights or gradients as received.
        delta: w_c - w_t in float64.
        weights: w_t in float64.
        algorithm: Says what ``sent`` is.
        learning_rate: eta, between a gradient and ``delta``.
    """
    what = "gradients" if algorithm is Algorithm.FEDSGD else "weights"
    for name, (kind, _) in _HALF.items():
        received = [name for name, tensor in sent.items() if tensor.dtype is kind]
        moved = [sent[one].double() for one in sent if delta[one].any()]
        entries = torch.cat([tensor.flatten() for tensor in moved]) if moved else torch.zeros(0)
        entries = entries[entries != 0]
        if received or (len(entries) >= _FEWEST_ENTRIES and torch.equal(entries.to(kind).double(), entries)):
            return _of_sent(name, kind, what, weights, learning_rate if algorithm is Algorithm.FEDSGD else None)
    if algorithm is Algorithm.FEDSGD:
        return None
    for name, (kind, half_unit) in _HALF.items():
        if _is_sum_with_halves(sent, delta, weights, kind, half_unit):
            detail = f"the update has the precision of {name}"
            return HalfPrecision(
                detail=detail, rounded=lambda own, kind=kind: {n: t.to(kind).double() for n, t in own.items()}
            )
    return None


def find_levels(delta: Parameters, roundings: Callable[[str], Tensor], *, unit: float = 1.0) -> Levels | None:
    """Return the coarsest levels on which all tensors of some size lie, or ``None``.

    Args:
        delta: w_c - w_t in float64.
        roundings: By name, what single precision may change in each entry.
        unit: What ``delta`` is divided by to be in the units of what was sent.
    """
    large = {name: tensor for name, tensor in delta.items() if tensor.count_nonzero() >= 2}
    if sum(int(tensor.count_nonzero()) for tensor in large.values()) < _FEWEST_ENTRIES:
        return None
    rounding = {name: roundings(name) for name in large}
    largest = {name: float(tensor.abs().amax()) for name, tensor in large.items()}
    on_one = {name: largest[name] for name in large}
    if _all_on(large, on_one, rounding):
        is_sign = not any((tensor == 0).any() for tensor in large.values())
        detail = (
            "only signs, with one magnitude for each tensor"
            if is_sign
            else "quantised to 2 bits, or to signs: each tensor holds one magnitude and zero"
        )
        return Levels(detail=detail, steps=on_one, is_sign=is_sign)
    for bits in range(3, _MOST_BITS + 1):
        steps = {name: value / (2 ** (bits - 1) - 1) for name, value in largest.items()}
        if _all_on(large, steps, rounding):
            detail = f"quantised to {bits} bits: each tensor lies on {2**bits - 1} even levels"
            return Levels(detail=detail, steps=steps)
    return _multiples(large, rounding, unit)


def _of_sent(
    name: str, kind: torch.dtype, what: str, weights: Parameters, learning_rate: float | None
) -> HalfPrecision:
    def rounded(own: Parameters) -> dict[str, Tensor]:
        if learning_rate is not None:
            return {one: (tensor / learning_rate).to(kind).double() * learning_rate for one, tensor in own.items()}
        return {one: (weights[one] + tensor).to(kind).double() - weights[one] for one, tensor in own.items()}

    return HalfPrecision(detail=f"the {what} that are sent have the precision of {name}", rounded=rounded)


def _is_sum_with_halves(
    sent: Mapping[str, Tensor], delta: Parameters, weights: Parameters, kind: torch.dtype, half_unit: float
) -> bool:
    """Say whether every sent weight is w_t plus a value of half precision, rounded to single precision."""
    num_told = 0
    for name, tensor in delta.items():
        told = (tensor.abs() * half_unit > _FINER * _SINGLE_PRECISION * weights[name].abs()) & (tensor != 0)
        again = (weights[name] + tensor.to(kind).double()).float()
        if not torch.equal(again[told], sent[name].float()[told]):
            return False
        num_told += int(told.sum())
    return num_told >= _FEWEST_ENTRIES


def _all_on(large: Parameters, steps: Mapping[str, float], rounding: Mapping[str, Tensor]) -> bool:
    """Say whether all entries are multiples of their tensor's step, and could well be none."""
    num_told = 0
    for name, tensor in large.items():
        step, off = steps[name], rounding[name] + 2.0 * rounding[name].amax() * tensor.abs() / tensor.abs().amax()
        told = (_FINER / 4.0 * off < step) & (tensor != 0)
        if bool(((tensor - (tensor / step).round() * step).abs() > off)[told].any()):
            return False
        num_told += int(told.sum())
    return num_told >= _FEWEST_ENTRIES


def _multiples(large: Parameters, rounding: Mapping[str, Tensor], unit: float) -> Levels | None:
    """Return one step for all tensors, of which every entry is a multiple."""
    entries = torch.cat([tensor.abs().flatten() for tensor in large.values()])
    values = entries[entries > 0].sort().values
    smallest, largest = float(values[0]), float(values[-1])
    step = largest / round(largest / smallest)  # less rounded than the smallest value
    if largest / step > 2**_MOST_BITS or not _all_on(large, dict.fromkeys(large, step), rounding):
        return None
    return Levels(detail=f"every entry is a multiple of {step / unit:.4g}", steps=dict.fromkeys(large, step))
