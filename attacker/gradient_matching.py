"""The optimisation attack: find images whose update is the observed one.

    minimise over z   factor(t) * matching(z) + sum of weight * prior(z)

with Adam, z in normalised units (pixels = mean + std * z), in which the constants of the papers are stated. Its sibling
without priors is `attacker.lbfgs`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from attacker.attack import OnStep, Outcome, Progress, StopAttackError
from attacker.schedules import Schedule

Term: TypeAlias = Callable[[Tensor], Tensor]

_STEPS_UNSEEN = 64


class Minimised(Protocol):
    """What can be minimised: `Objective`, or something that computes its gradient in a way of its own."""

    def matching(self, variables: Tensor, /) -> Tensor:
        """Return the distance between the simulated and the observed update, shape ()."""
        ...

    def gradient(self, variables: Tensor, /, *, factor: float, step: int) -> tuple[Tensor, Tensor]:
        """Return the matching loss, (), and the gradient of ``factor * matching + priors``, shaped as the variables.

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

    def gradient(self, variables: Tensor, *, factor: float, step: int) -> tuple[Tensor, Tensor]:
        """See `Minimised`."""
        matching = self.matching(variables)
        (gradient,) = torch.autograd.grad(factor * matching + self.prior(variables), variables)
        return matching.detach(), gradient


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

    The host does not wait for a GPU within the loop, but for whoever looks at the loss that ``on_step`` is told, and
    once in some steps to see whether it still is finite.

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
    # Fused, a step of Adam is one operation for a GPU instead of a dozen small ones.
    optimizer = torch.optim.Adam([variables], fused=variables.is_cuda)
    track = _Track(start.detach(), search.steps)
    outcome = Outcome.FINISHED
    for step in range(search.steps):
        loss, gradient = objective.gradient(variables, factor=search.matching_factor(step), step=step)
        track.note(variables.detach(), loss)
        if track.is_seen_to_end:
            break
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
            on_step(Progress(step=step + 1, num_steps=search.steps, loss=track.losses[step], images=images))
        except StopAttackError:
            outcome = Outcome.STOPPED
            break
    losses, best_loss = track.finite_losses(), track.best_loss.item()
    best = Optimum(variables=track.best, matching_loss=best_loss, losses=losses, outcome=outcome)
    if track.has_ended:
        return replace(best, outcome=Outcome.NON_FINITE)
    with torch.no_grad():
        last, last_loss = variables.detach(), objective.matching(variables.detach()).item()
    if not math.isfinite(last_loss):
        return replace(best, outcome=Outcome.NON_FINITE)
    if search.keep == "best" and best_loss < last_loss:
        return best
    return replace(best, variables=last, matching_loss=last_loss)


def is_free_to_look_at(tensor: Tensor) -> bool:
    """Say whether the host sees a tensor's values without waiting for a device."""
    return tensor.device.type == "cpu"


class _Track:
    """Losses and best variables of a search, kept on its device so that nobody has to wait for them.

    Attributes:
        losses: (T,), the matching loss before each step; NaN for those to come.
        best: The variables of the lowest loss; one that is not a number is not the lowest.
        best_loss: That loss, shape (); infinite if none was finite.
    """

    def __init__(self, start: Tensor, num_steps: int) -> None:
        self.losses = start.new_full((num_steps,), math.nan)
        self.best = start.clone()
        self.best_loss = start.new_full((), math.inf)
        self._num_steps = 0

    def note(self, variables: Tensor, loss: Tensor) -> None:
        """Take notice of a step."""
        self.losses[self._num_steps] = loss
        self._num_steps += 1
        is_best = loss < self.best_loss
        self.best = torch.where(is_best, variables, self.best)
        self.best_loss = torch.where(is_best, loss, self.best_loss)

    @property
    def has_ended(self) -> bool:
        """Whether a loss was not finite."""
        return not self.losses[: self._num_steps].isfinite().all()

    @property
    def is_seen_to_end(self) -> bool:
        """The same, late on a GPU: it is looked at where that costs nothing, elsewhere now and then."""
        return (is_free_to_look_at(self.losses) or not self._num_steps % _STEPS_UNSEEN) and self.has_ended

    def finite_losses(self) -> Tensor:
        """Return the losses so far on the CPU; the last is the first that was not finite, if there is one."""
        losses = self.losses[: self._num_steps].cpu()
        ends = (~losses.isfinite()).nonzero()
        return losses[: int(ends[0]) + 1] if len(ends) else losses
