"""A costly gradient that serves for several steps."""

import pytest
import torch
from torch import Tensor

from attacker.attack import ignore_progress
from attacker.gradient_matching import Objective, Optimum, Search, minimise
from attacker.held_matching import HeldMatching
from attacker.schedules import Constant

TARGET = torch.tensor([1.0, -2.0, 0.5])
SEARCH = Search(steps=12, learning_rate=Constant(0.1), matching_factor=Constant(2.0))


class Matching:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, variables: Tensor) -> Tensor:
        self.calls += 1
        return (variables - TARGET).square().sum()


def found(objective: HeldMatching | Objective) -> Optimum:
    return minimise(objective, torch.zeros(3), SEARCH, on_step=ignore_progress)


def test_held_for_one_step_it_is_the_plain_objective():
    held = found(HeldMatching(Matching(), lambda variables, _: 0.3 * variables.abs().sum(), hold=1))
    plain = found(Objective(matching=Matching(), priors=((0.3, lambda variables: variables.abs().sum()),)))
    assert torch.equal(held.variables, plain.variables)
    assert torch.equal(held.losses, plain.losses)


@pytest.mark.parametrize(("hold", "expected"), [(1, 12), (4, 3), (5, 3), (100, 1)])
def test_the_matching_gradient_is_taken_in_every_held_step(hold, expected):
    matching = Matching()
    losses = found(HeldMatching(matching, lambda variables, _: variables.square().sum(), hold=hold)).losses
    assert matching.calls == expected + 1  # the loss at the end
    assert len(losses.unique()) == expected


def test_the_prior_is_told_the_step():
    steps: list[int] = []

    def prior(variables: Tensor, step: int) -> Tensor:
        steps.append(step)
        return variables.sum()

    found(HeldMatching(Matching(), prior, hold=3))
    assert steps == list(range(12))
