"""Which of the sent tensors is which of the model's: missing, renamed, exchanged or transposed ones.

Names alone do not tell: two tensors of the same shape may be exchanged. What was sent is compared with the replay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.diagnosis.replay import DeclaredTraining
from fl_sim.parameters import Parameters
from fl_sim.records import Algorithm

_CLEARLY = 0.05
"""Tensors are taken to be exchanged where that leaves less than this share of what names leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """An update in the model's names.

    Attributes:
        sent: What was received, by the model's names and in its order; what was not received is absent.
        delta: The same as w_c - w_t in float64.
        remarks: What differs from what the model says, by cause; empty where nothing does.
    """

    sent: Mapping[str, Tensor]
    delta: dict[str, Tensor]
    remarks: Mapping[str, str]


def align(
    sent: Mapping[str, Tensor], replayed: Parameters, training: DeclaredTraining, algorithm: Algorithm
) -> Alignment:
    """Find the model's tensors in what was sent.

    Args:
        sent: By the names under which it was received.
        replayed: w_c - w_t of the declared training, of all the model's tensors.
        training: Gives w_t and the learning rate.
        algorithm: Says whether ``sent`` are weights or a gradient.
    """
    expected = _expected(replayed, training, algorithm)
    found = {name: tensor for name, tensor in sent.items() if name in expected and _fits(tensor, expected[name])}
    foreign = {name: tensor for name, tensor in sent.items() if name not in found}
    notes: dict[str, list[str]] = {}
    for name in [name for name in expected if name not in found]:
        candidates = {other: t for other, t in foreign.items() if _fits(t, expected[name])}
        candidates |= {other: t.T for other, t in foreign.items() if _is_turned(t, expected[name], candidates, other)}
        if not candidates:
            wrong = f" (received with shape {tuple(foreign[name].shape)})" if name in foreign else ""
            notes.setdefault("missing", []).append(f"{name}{wrong}")
            continue
        other = min(candidates, key=lambda one: _distance(candidates[one], expected[name]))
        found[name] = candidates[other]
        if other != name:
            notes.setdefault("renamed", []).append(f"{name} is called {other}")
        if foreign.pop(other).shape != expected[name].shape:
            notes.setdefault("transposed", []).append(name)
    if foreign:
        notes.setdefault("unexpected", []).extend(sorted(foreign))
    found = {name: found[name] for name in expected if name in found}
    found, turned, exchanged = _as_they_fit(found, expected)
    for cause, names in (("transposed", turned), ("renamed", exchanged)):
        if names:
            notes.setdefault(cause, []).extend(names)
    return Alignment(
        sent=found,
        delta={name: _delta(tensor, name, training, algorithm) for name, tensor in found.items()},
        remarks={cause: ", ".join(names) for cause, names in notes.items()},
    )


def _expected(replayed: Parameters, training: DeclaredTraining, algorithm: Algorithm) -> dict[str, Tensor]:
    """Return what the declared training would have sent."""
    if algorithm is Algorithm.FEDSGD:
        return {name: -tensor / training.recipe.learning_rate for name, tensor in replayed.items()}
    return {name: training.weights[name] + tensor for name, tensor in replayed.items()}


def _delta(tensor: Tensor, name: str, training: DeclaredTraining, algorithm: Algorithm) -> Tensor:
    received = tensor.detach().double()
    if algorithm is Algorithm.FEDSGD:
        return -training.recipe.learning_rate * received
    return received - training.weights[name]


def _as_they_fit(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Turn square matrices and exchange tensors of one shape where that fits clearly better."""
    turned = [
        name
        for name, tensor in found.items()
        if tensor.dim() == 2
        and _is_turned(tensor, expected[name], (), name)
        and _distance(tensor.T, expected[name]) < _CLEARLY * _distance(tensor, expected[name])
    ]
    now = {name: tensor.T if name in turned else tensor for name, tensor in found.items()}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in now.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    exchanged: list[str] = []
    for names in by_shape.values():
        costs = [[_distance(now[other], expected[name]) for other in names] for name in names]
        if not all(math.isfinite(cost) for row in costs for cost in row):
            continue  # the replay diverged
        _, columns = linear_sum_assignment(costs)
        moved = [(name, names[column]) for name, column in zip(names, columns, strict=True) if name != names[column]]
        after = sum(_distance(now[other], expected[name]) for name, other in moved)
        if moved and after < _CLEARLY * sum(_distance(now[name], expected[name]) for name, _ in moved):
            exchanged.extend(f"{name} is called {other}" for name, other in moved)
            now |= {name: now[other] for name, other in moved}
    return now, turned, exchanged


def _fits(tensor: Tensor, like: Tensor) -> bool:
    return tensor.shape == like.shape


def _is_turned(tensor: Tensor, like: Tensor, candidates: Mapping[str, Tensor] | tuple[()], name: str) -> bool:
    return tensor.dim() == 2 and name not in candidates and tensor.T.shape == like.shape


def _distance(tensor: Tensor, like: Tensor) -> float:
    return float((tensor.detach().double() - like).square().sum())
