"""What an attack that runs in lockstep has: others, with whom its simulations and terms are computed.

An attack is written for one observation and knows nothing of it: `InversionProblem` and `evaluate` look whether the
attack that calls them has company.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attacker.attack import Progress, StopAttackError
from attacker.client_simulation import ClientSimulation
from attacker.joint_simulation import Adjoint, Answer, JointSimulation, Matching, Place, Question
from attacker.joint_terms import JointTerm, TermAt, Valued, with_known_gradient
from attacker.lockstep import Ask


@dataclass(frozen=True, slots=True)
class Company:
    """The others, by way of whom all of them are answered together."""

    ask: Ask[Question, Answer]
    joint: JointSimulation

    def simulate(self, own: ClientSimulation) -> dict[str, Tensor]:
        """Return the mean gradient, differentiable once by the images."""
        place = None
        if own.has_place_in_batch and not self.joint.is_alone(own):
            place = self.ask(replace(own, images=own.images.detach()))
        if not isinstance(place, Place):
            return own.alone()
        if own.plan is None:
            return {name: tensor[place.position] for name, tensor in place.batch.updates.items()}
        updates = cast(tuple[Tensor, ...], _OfBatch.apply(self.ask, place, own.images))  # type: ignore[no-untyped-call]
        return dict(zip(place.batch.updates, updates, strict=True))

    def matching(self, own: ClientSimulation, distance: JointTerm) -> Tensor:
        """Return the distance of the mean gradient, shape (), differentiable once by the images."""
        found = None
        if own.has_place_in_batch and not self.joint.is_alone(own):
            found = self.ask(Matching(simulation=replace(own, images=own.images.detach()), distance=distance))
        if not isinstance(found, Valued):
            return distance.alone(own.alone())
        return with_known_gradient(own.images, found)

    def term(self, term: JointTerm, variables: Tensor, factors: tuple[float, ...]) -> Tensor:
        """Return a term, shape (), differentiable once by the variables."""
        found = None
        if self.joint.is_together:
            found = self.ask(TermAt(term=term, variables=variables.detach(), factors=factors))
        if not isinstance(found, Valued):
            return term.alone(variables, *factors)
        return with_known_gradient(variables, found)

    def on_step(self, progress: Progress) -> None:
        """Hand a step to whoever watches, in their thread."""
        answer = self.ask(progress)
        if isinstance(answer, StopAttackError):
            raise answer


_COMPANY: ContextVar[Company | None] = ContextVar("company", default=None)


def company() -> Company | None:
    """Return whom the running attack can be computed with; ``None`` for an attack on its own."""
    return _COMPANY.get()


def evaluate(term: JointTerm, variables: Tensor, *factors: float) -> Tensor:
    """Return a term, shape (), differentiable by the variables: with that of others where the attack has company.

    Args:
        term: Of this attack.
        variables: As its function takes them.
        factors: What the function takes besides.
    """
    others = company()
    if others is None or not (variables.requires_grad and torch.is_grad_enabled()):
        return term.alone(variables, *factors)
    return others.term(term, variables, factors)


@contextmanager
def in_company(own: Company) -> Generator[None]:
    """Let simulations inside be computed with those of others."""
    token = _COMPANY.set(own)
    # OpenMP counts by thread, and a new one would take all cores.
    torch.set_num_threads(torch.get_num_threads())
    try:
        # An adjoint waits for those of the others, which the one thread that autograd has for a GPU could not.
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _COMPANY.reset(token)


class _OfBatch(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, ask: Ask[Question, Answer], place: Place, images: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ask, ctx.place = ask, place
        return tuple(tensor[place.position].detach() for tensor in place.batch.updates.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, ctx.ask(Adjoint(ctx.place, outer))
