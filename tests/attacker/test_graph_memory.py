"""What is kept of the graph of a simulation: as much as fits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import mlp, observe, pictures, spec

from attacker import inversion_problem as module
from attacker.graph_memory import graph_bytes, memory_budget, plan_graph
from attacker.inversion_problem import inversion_problem
from fl_sim.records import LocalTraining


def test_the_whole_graph_is_kept_where_it_fits() -> None:
    plan = plan_graph(100, step_bytes=10, state_bytes=4, budget=1000)
    assert (plan.segment_length, plan.bytes_at_once, plan.bytes_of_whole) == (None, 1000, 1000)
    assert "kept whole" in str(plan)


@given(
    num_steps=st.integers(1, 200),
    step_bytes=st.integers(1, 50),
    state_bytes=st.integers(1, 50),
    budget=st.integers(1, 2000),
)
def test_segments_fit_and_could_not_be_longer(num_steps: int, step_bytes: int, state_bytes: int, budget: int) -> None:
    plan = plan_graph(num_steps, step_bytes=step_bytes, state_bytes=state_bytes, budget=budget)
    if plan.segment_length is None:
        assert num_steps * step_bytes <= budget
        return
    needed = [length * step_bytes + -(-num_steps // length) * state_bytes for length in range(1, num_steps + 1)]
    assert plan.bytes_at_once == needed[plan.segment_length - 1]
    if min(needed) <= budget:
        assert plan.bytes_at_once <= budget < min(needed[plan.segment_length :], default=budget + 1)
    else:
        assert plan.bytes_at_once == min(needed)


def test_graph_bytes_counts_what_autograd_keeps() -> None:
    factor = torch.ones(1000, requires_grad=True)
    other = torch.ones(1000)
    assert graph_bytes(lambda: (factor * other).sum()) == 4000  # the derivative is `other`
    assert graph_bytes(lambda: ((factor * other) + (factor * other)).sum()) == 4000
    assert graph_bytes(lambda: factor.detach() * other) == 0


def test_budget_is_a_share_of_what_is_free() -> None:
    assert 0 < memory_budget(torch.device("cpu")) < 2**45


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_attack_with_little_memory_computes_the_same_and_says_how(monkeypatch, momentum: float) -> None:
    dataset = spec(num_classes=3, side=4)
    recipe = LocalTraining(epochs=3, batch_size=1, learning_rate=0.1, momentum=momentum)
    images, labels = pictures(3, side=4), torch.arange(3)
    observation = observe(mlp(dataset), dataset, images, labels, recipe=recipe)
    found = []
    for budget in (10**9, 1):
        monkeypatch.setattr(module, "memory_budget", lambda device, budget=budget: budget)
        problem = inversion_problem(observation, "automatic", torch.Generator().manual_seed(0))
        own = images.clone().requires_grad_()
        update = problem.simulate(own, "full")
        sum(tensor.square().sum() for tensor in update.values()).backward()
        (plan,) = problem.graph_plans.values()
        found.append((own.grad, plan.segment_length))
    assert found[0][1] is None
    assert found[1][1] is not None
    torch.testing.assert_close(found[1][0], found[0][0])
