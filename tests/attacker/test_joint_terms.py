"""Terms computed for several attacks at once are what each of them would compute by itself."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from attacker.company import Company, evaluate, in_company
from attacker.joint_simulation import Choice, JointSimulation
from attacker.joint_terms import JointTerm, Stacks, TermAt, values_and_gradients, with_known_gradient
from attacker.lockstep import Ask, run_in_lockstep


def bent(variables: Tensor, own: Mapping[str, Any], factor: float) -> Tensor:
    return factor * (own["shift"] + own["inner"]["scale"] * variables).sin().sum()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def term(seed: int) -> JointTerm:
    return JointTerm(
        function=bent, constants={"shift": noise(3, seed=seed), "inner": {"scale": noise(3, seed=seed + 50)}}
    )


def asked(seed: int, factor: float = 2.0) -> TermAt:
    return TermAt(term=term(seed), variables=noise(2, 3, seed=seed + 100), factors=(factor,))


def test_values_and_gradients_are_those_of_each_alone() -> None:
    questions = [asked(seed) for seed in range(3)]
    for own, found in zip(questions, values_and_gradients(questions, Stacks()), strict=True):
        leaf = own.variables.clone().requires_grad_()
        value = own.term.alone(leaf, 2.0)
        torch.testing.assert_close(found.value, value.detach())
        torch.testing.assert_close(found.gradient, torch.autograd.grad(value, leaf)[0])


def test_a_known_gradient_is_a_derivative() -> None:
    own = asked(0)
    (found,) = values_and_gradients([own], Stacks())
    leaf = own.variables.clone().requires_grad_()
    value = with_known_gradient(leaf, found)
    assert value.item() == found.value.item()
    torch.testing.assert_close(torch.autograd.grad(3.0 * value, leaf)[0], 3.0 * found.gradient)


def test_constants_are_stacked_once_and_anew_when_they_are_others() -> None:
    stacks = Stacks()
    first: dict[str, Any] = dict(term(0).constants)
    second: dict[str, Any] = dict(term(1).constants)
    stacked = stacks.stacked("terms", [first, second])
    assert stacks.stacked("terms", [first, second]) is stacked
    for others in ([second, first], [first], [first, dict(second)]):
        found = stacks.stacked("terms", others)
        assert found is not stacked
        torch.testing.assert_close(found["shift"], torch.stack([own["shift"] for own in others]))
        torch.testing.assert_close(found["inner"]["scale"], torch.stack([own["inner"]["scale"] for own in others]))


def test_what_differs_in_kind_is_not_mixed() -> None:
    own = asked(0)
    assert own.kind == asked(1).kind
    other_function = TermAt(
        term=JointTerm(function=lambda *_: noise(), constants=own.term.constants),
        variables=own.variables,
        factors=own.factors,
    )
    wider = TermAt(term=own.term, variables=noise(4, 3), factors=own.factors)
    fewer = TermAt(
        term=JointTerm(function=bent, constants={"shift": noise(3)}), variables=own.variables, factors=own.factors
    )
    assert len({each.kind for each in (own, asked(0, factor=1.0), other_function, wider, fewer)}) == 5


@pytest.mark.parametrize("together", [True, False])
def test_attacks_in_company_are_answered_by_kind(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    joint = JointSimulation(on_step=lambda progress: None)
    if together:
        monkeypatch.setattr(JointSimulation, "is_together", True)
    sizes: list[int] = []
    answer = joint.answer

    def noted(questions: Mapping[int, Any]) -> Any:
        sizes.append(len(questions))
        return answer(questions)

    def attack(seed: int, factor: float):
        def run(ask: Ask[Any, Any]) -> Tensor:
            with in_company(Company(ask, joint)):
                own = asked(seed)
                leaf = own.variables.clone().requires_grad_()
                return torch.autograd.grad(evaluate(own.term, leaf, factor), leaf)[0]

        return run

    # The last of the three is the only one of its kind.
    factors = (2.0, 2.0, 5.0)
    found = run_in_lockstep([attack(seed, factor) for seed, factor in enumerate(factors)], noted)
    for seed, (factor, gradient) in enumerate(zip(factors, found, strict=True)):
        leaf = asked(seed).variables.clone().requires_grad_()
        (expected,) = torch.autograd.grad(term(seed).alone(leaf, factor), leaf)
        torch.testing.assert_close(gradient, expected)
    assert sizes == ([3] if together else [])


def test_terms_follow_what_was_chosen_for_the_simulations() -> None:
    joint = JointSimulation(on_step=lambda progress: None)
    assert not joint.is_together
    for name, seconds, expected in (("first", 0.1, True), ("second", 5.0, False)):
        plan: Any = None
        joint.choices[name] = Choice(clients=2, seconds_together=seconds, seconds_alone=1.0, plan=plan)
        assert joint.is_together == expected
