"""The optimisation attack: find images whose update is the observed one.

    minimise over z   factor(t) * matching(z) + sum of weight * prior(z)

with Adam, z in normalised units (pixels = mean + std * z), in which the constants of the papers are stated. Its sibling
without priors is `attacker.lbfgs`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from attacker.attack import OnStep, Outcome, Progress, StopAttackError
from attacker.schedules import Schedule

Term: TypeAlias = Callable[[Tensor], Tensor]


class Minimised(Protocol):
    """What can be minimised: `Objective`, or something that computes its gradient in a way of its own."""

    def matching(self, variables: Tensor, /) -> Tensor:
        """Return the distance between the simulated and the observed update, shape ()."""
        ...

    def gradient(self, variables: Tensor, /, *, factor: float, step: int) -> tuple[float, Tensor]:
        """Return the matching loss, and the gradient of ``factor * matching + priors``, shaped as the variables.

        Args:
            variables: z; requires a gradient.
            factor: Of the matching term at this step.
            step: Counted from 0.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised, as a sum of terms.

    Attributes:
        matching: Distance between the simulated and the observed update, shape ().
        priors: Weights and terms of shape ().
    """

    matching: Term
    priors: tuple[tuple[float, Term], ...] = ()

    def prior(self, variables: Tensor) -> Tensor:
        """Return the weighted sum of the priors, shape ()."""
        terms = [weight * term(variables) for weight, term in self.priors if weight]
        return torch.stack(terms).sum() if terms else variables.new_zeros(())

    def gradient(self, variables: Tensor, *, factor: float, step: int) -> tuple[float, Tensor]:
        """See `Minimised`."""
        matching = self.matching(variables)
        (gradient,) = torch.autograd.grad(factor * matching + self.prior(variables), variables)
        return matching.item(), gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How it is minimised.

    Attributes:
        steps: T, Adam steps, >= 1.
        learning_rate: Of Adam, by step, in normalised units.
        matching_factor: Factor of the matching term, by step.
        signed: Gives Adam the sign of the gradient only.
        noise: Drawn after each step and added to the variables behind Adam's back, so that Adam does not rescale it.
        box: Lower and upper bounds, broadcast to the variables, onto which they are projected after each step.
        keep: The ``"last"`` iterate, or the ``"best"`` one by matching loss.
    """

    steps: int
    learning_rate: Schedule
    matching_factor: Schedule
    signed: bool = False
    noise: Callable[[int], Tensor] | None = None
    box: tuple[Tensor, Tensor] | None = None
    keep: Literal["last", "best"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """What the search ended with.

    Attributes:
        variables: z, as the start.
        matching_loss: Matching term at ``variables``, without its factor; infinite if it was never finite.
        losses: (T,), the matching term before each step.
        outcome: How it ended; after a divergence ``variables`` are the best before it.
    """

    variables: Tensor
    matching_loss: float
    losses: Tensor
    outcome: Outcome


def minimise(
    objective: Minimised, start: Tensor, search: Search, *, on_step: OnStep, to_pixels: Term | None = None
) -> Optimum:
    """Run the search.

    The host waits for the device once in each step, for the number that ``on_step`` reports.

    Args:
        objective: What is minimised.
        start: z of the first step, on the device and in the type of the computation.
        search: How.
        on_step: Told about each step; may end the search by `StopAttackError`.
        to_pixels: What the variables look like, for those who watch; called by them alone.

    References:
        Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Algorithm 1.
        Geiping et al., Inverting Gradients, NeurIPS 2020, Sec. 4 (cosine, signed Adam, box).
        Yin et al., GradInversion, CVPR 2021, Sec. 3 (noise on the pixels).
    """
    variables = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([variables])
    best, best_loss = start.detach().clone(), math.inf
    losses: list[float] = []
    outcome = Outcome.FINISHED
    for step in range(search.steps):
        loss, gradient = objective.gradient(variables, factor=search.matching_factor(step), step=step)
        losses.append(loss)
        if not math.isfinite(losses[-1]):
            return _optimum(best, best_loss, losses, Outcome.NON_FINITE)
        if losses[-1] < best_loss:
            best, best_loss = variables.detach().clone(), losses[-1]
        variables.grad = gradient.sign() if search.signed else gradient
        optimizer.param_groups[0]["lr"] = search.learning_rate(step)
        optimizer.step()
        if search.noise is not None:
            with torch.no_grad():
                variables.add_(search.noise(step))
        if search.box is not None:
            with torch.no_grad():
                variables.clamp_(*search.box)
        images = None if to_pixels is None else partial(to_pixels, variables.detach())
        try:
            on_step(Progress(step=step + 1, num_steps=search.steps, matching_loss=losses[-1], images=images))
        except StopAttackError:
            outcome = Outcome.STOPPED
            break
    with torch.no_grad():
        last, last_loss = variables.detach(), objective.matching(variables.detach()).item()
    if not math.isfinite(last_loss):
        return _optimum(best, best_loss, losses, Outcome.NON_FINITE)
    if search.keep == "best" and best_loss < last_loss:
        return _optimum(best, best_loss, losses, outcome)
    return _optimum(last, last_loss, losses, outcome)


def _optimum(variables: Tensor, matching_loss: float, losses: list[float], outcome: Outcome) -> Optimum:
    return Optimum(variables=variables, matching_loss=matching_loss, losses=torch.tensor(losses), outcome=outcome)
