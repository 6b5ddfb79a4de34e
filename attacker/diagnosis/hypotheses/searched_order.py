"""The order in which a small client visited its images, found from the update: proof, where `batch_order` has a hint.

From a few random orders, the best first, exchange two images of different batches of an epoch wherever that brings
the replay closer, until nothing is left, or no exchange helps, or the steps are used up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.replay import random_visits, replay
from fl_sim.seeds import generator

_MOST_STEPS = 3000
"""Local steps that are replayed for the search."""


def order_search(inquiry: Inquiry) -> list[Finding]:
    """Look for an order that explains the update exactly; dear, and so only where nothing else does."""
    training = inquiry.training
    if training.recipe.batches_per_epoch(training.num_examples) == 1 or not training.knows_order:
        return []
    if training.draws_dropout:
        return []  # no two replays are alike
    draw = generator(0, "diagnosis-of-order")
    draws = random_visits(training.num_examples, training.recipe.epochs, draw)
    budget = _MOST_STEPS // training.num_steps
    if budget < len(draws):
        return []
    moves = list(_exchanges(inquiry))
    left = budget - len(draws)
    for residual, visit in sorted(((_residual(inquiry, one), one) for one in draws), key=lambda pair: pair[0]):
        residual, visit, used = _descended(inquiry, residual, visit, moves, left)
        left -= used
        if inquiry.evidence(residual) is Evidence.EXACT:
            detail = f"images are visited in another order, which was found: {_written(inquiry, visit)}"
            return [
                Finding(cause="batch_order", detail=detail, residual=residual, evidence=Evidence.EXACT, num_fitted=1)
            ]
    return []


def _descended(
    inquiry: Inquiry, residual: float, visit: Tensor, moves: Sequence[tuple[int, int, int]], most: int
) -> tuple[float, Tensor, int]:
    """Exchange images until none of the moves helps; return residual, order, and how many replays it took."""
    used = since_better = 0
    while residual > inquiry.near_zero and used < most and since_better < len(moves):
        epoch, first, second = moves[used % len(moves)]
        other = visit.clone()
        other[epoch, [first, second]] = visit[epoch, [second, first]]
        tried, used = _residual(inquiry, other), used + 1
        since_better = 0 if tried < residual else since_better + 1
        if tried < residual:
            residual, visit = tried, other
    return residual, visit, used


def _residual(inquiry: Inquiry, visit: Tensor) -> float:
    return inquiry.residual_of(replay(inquiry.training, replace(inquiry.training.declared(), visits=(visit,))))


def _exchanges(inquiry: Inquiry) -> Iterator[tuple[int, int, int]]:
    """Yield epoch and two positions in different batches; within a batch the order says nothing."""
    number, size = inquiry.training.num_examples, inquiry.training.recipe.batch_size or inquiry.training.num_examples
    for epoch in range(inquiry.training.recipe.epochs):
        for first, second in torch.combinations(torch.arange(number)).tolist():
            if first // size != second // size:
                yield epoch, first, second


def _written(inquiry: Inquiry, visit: Tensor) -> str:
    """Write the batches of each epoch, ``{0 3} {1 2} | {1 3} {0 2}``."""
    size = inquiry.training.recipe.batch_size or inquiry.training.num_examples
    epochs = [[sorted(batch.tolist()) for batch in order.split(size)] for order in visit]
    return " | ".join(" ".join(f"{{{' '.join(map(str, batch))}}}" for batch in epoch) for epoch in epochs)
