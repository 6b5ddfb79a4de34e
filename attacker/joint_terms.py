"""Terms of objectives that attacks side by side share, computed for all of them at once.

    attack b:  term_b(z_b) = f(z_b; c_b, factors),   b = 1..B        f the same for all, constants c_b each one's own
    together:  values, gradients = f under `torch.func.vmap`

A term by itself is so little work that a GPU spends its time starting it; for B attacks it is started once.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import vmap

Constants: TypeAlias = Mapping[str, Tensor | Mapping[str, Tensor]]
Leaves = TypeVar("Leaves", bound=Constants)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointTerm:
    """A term of an objective.

    Attributes:
        function: Of variables, constants and factors; returns shape (), and is pure. Attacks share it where theirs
            compare equal and all shapes agree.
        constants: This attack's own tensors; the same mapping from step to step.
    """

    function: Callable[..., Tensor]
    constants: Constants

    def alone(self, variables: Tensor | Mapping[str, Tensor], *factors: float) -> Tensor:
        """Return the term, of this attack alone."""
        return self.function(variables, self.constants, *factors)

    @property
    def kind(self) -> Hashable:
        """What must agree for one batch."""
        return self.function, tuple(_shapes(self.constants))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TermAt:
    """Asks for a term and its gradient.

    Attributes:
        variables: Where, without history.
        factors: Numbers that the function takes besides, which may change from step to step.
    """

    term: JointTerm
    variables: Tensor
    factors: tuple[float, ...]

    @property
    def kind(self) -> Hashable:
        """What must agree for one batch."""
        return self.term.kind, self.variables.shape, self.variables.dtype, self.variables.device, self.factors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Valued:
    """A term, shape (), and its gradient, shaped as the variables."""

    value: Tensor
    gradient: Tensor


class Stacks:
    """Constants of several attacks, stacked; remembered for as long as the same are asked for."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[tuple[Constants, ...], Constants]] = {}

    def stacked(self, name: Hashable, of_each: Sequence[Leaves]) -> Leaves:
        """Return tensors (B, ...) in place of each mapping's own.

        Args:
            name: What it is; the last one of each name is remembered.
            of_each: Mappings of the same names and shapes, which are not changed as long as they live.
        """
        known = self._last.get(name)
        is_known = known is not None and len(known[0]) == len(of_each)
        if known is None or not is_known or any(own is not one for own, one in zip(of_each, known[0], strict=True)):
            known = tuple(of_each), _stacked(of_each)
            self._last[name] = known
        return cast(Leaves, known[1])


def values_and_gradients(asked: Sequence[TermAt], stacks: Stacks) -> list[Valued]:
    """Answer questions of one kind."""
    first = asked[0]
    variables = torch.stack([own.variables for own in asked]).requires_grad_()
    with torch.enable_grad():
        values = values_of([own.term for own in asked], variables, stacks, *first.factors)
    (gradients,) = torch.autograd.grad(values.sum(), variables)
    return valued(values, gradients)


def values_of(
    terms: Sequence[JointTerm], variables: Tensor | Mapping[str, Tensor], stacks: Stacks, *factors: float
) -> Tensor:
    """Return terms of one kind, (B,), at variables (B, ...)."""
    function = terms[0].function

    def value_of(variables: Any, constants: Constants) -> Tensor:
        return function(variables, constants, *factors)

    return vmap(value_of)(variables, stacks.stacked(function, [term.constants for term in terms]))


def valued(values: Tensor, gradients: Tensor) -> list[Valued]:
    """Return each attack's value and gradient, of (B,) and (B, ...)."""
    pairs = zip(values.detach().unbind(), gradients.unbind(), strict=True)
    return [Valued(value=value, gradient=gradient) for value, gradient in pairs]


def with_known_gradient(variables: Tensor, found: Valued) -> Tensor:
    """Return the value, whose derivative by the variables is the gradient that was found with it."""
    return cast(Tensor, _Known.apply(variables, found))  # type: ignore[no-untyped-call]


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variables: Tensor, found: Valued) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.gradient = found.gradient
        return found.value.view(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return outer * ctx.gradient, None


def _shapes(constants: Constants) -> list[Hashable]:
    found: list[Hashable] = []
    for name, leaf in constants.items():
        found.append((name, (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else tuple(_shapes(leaf))))
    return found


def _stacked(of_each: Sequence[Constants]) -> dict[str, Any]:
    return {
        name: torch.stack(cast(list[Tensor], leaves)) if isinstance(leaves[0], Tensor) else _stacked(leaves)  # type: ignore[arg-type]
        for name, leaves in ((name, [own[name] for own in of_each]) for name in of_each[0])
    }
