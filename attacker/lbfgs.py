"""Gradient matching by L-BFGS with a strong Wolfe line search, as the first papers did it, without priors.

    minimise over z   matching(z)

A step is a call of `torch.optim.LBFGS`, several iterations long, as the papers count them.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacker.attack import OnStep, Outcome, Progress, StopAttackError
from attacker.gradient_matching import Optimum, Term

# torch's own tolerances are absolute and made for losses near 1; matching losses end far below.
_GRADIENT_TOLERANCE = 1e-10
_CHANGE_TOLERANCE = 1e-14


@dataclass(frozen=True, slots=True, kw_only=True)
class LbfgsSearch:
    """How it is minimised.

    Attributes:
        steps: T, >= 1.
        iterations_per_step: Of L-BFGS, >= 1.
        history: Past iterations of which the curvature is remembered, >= 1.
        learning_rate: Where the line search starts, > 0.
    """

    steps: int
    iterations_per_step: int = 20
    history: int = 100
    learning_rate: float = 1.0


def minimise_lbfgs(
    matching: Term, start: Tensor, search: LbfgsSearch, *, on_step: OnStep, to_pixels: Term | None = None
) -> Optimum:
    """Run the search; the best point that was looked at is returned.

    Args:
        matching: What is minimised, of shape (); best near 1 at the start, since L-BFGS drops curvatures below 1e-10.
        start: z of the first step, on the device and in the type of the computation.
        search: How.
        on_step: Told about each step.
        to_pixels: What the variables look like, for those who watch; called by them alone.

    Returns:
        The optimum. Its outcome is STALLED once a step leaves z where it was, for so would all others: at a minimum as
        well as where the line search finds no way down.

    References:
        Liu and Nocedal, On the limited memory BFGS method for large scale optimization, Math. Programming 45, 1989.
        Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Sec. 4.1.
    """
    variables = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [variables],
        lr=search.learning_rate,
        max_iter=search.iterations_per_step,
        history_size=search.history,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=_CHANGE_TOLERANCE,
        line_search_fn="strong_wolfe",
    )
    best, best_loss = start.detach().clone(), math.inf
    losses: list[float] = []

    def evaluate() -> float:
        nonlocal best, best_loss
        loss = matching(variables)
        (variables.grad,) = torch.autograd.grad(loss, variables)
        value = loss.item()
        if value < best_loss:
            best, best_loss = variables.detach().clone(), value
        return value

    outcome = Outcome.FINISHED
    for step in range(search.steps):
        before = variables.detach().clone()
        losses.append(optimizer.step(evaluate))
        if not (math.isfinite(losses[-1]) and bool(variables.isfinite().all())):
            outcome = Outcome.NON_FINITE
            break
        images = None if to_pixels is None else partial(to_pixels, variables.detach())
        try:
            on_step(Progress(step=step + 1, num_steps=search.steps, loss=losses[-1], images=images))
        except StopAttackError:
            outcome = Outcome.STOPPED
            break
        if torch.equal(before, variables):
            outcome = Outcome.STALLED
            break
    return Optimum(variables=best, matching_loss=best_loss, losses=torch.tensor(losses), outcome=outcome)
