"""The cheapest simulation that is faithful enough at the images so far, and how much an unknown order makes."""

from dataclasses import replace

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec

from attacker.faithful_simulation import FaithfulSimulation, candidates_for
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.order_noise import layer_weighted_vector
from attacker.recipes import FeatureSpan
from fl_sim.records import LocalTraining

LABELS = torch.tensor([0, 1, 2, 3])


def problem_of(learning_rate: float, batch_size: int = 4) -> InversionProblem:
    """Return six epochs; with a single batch each no order makes a difference."""
    recipe = LocalTraining(epochs=6, batch_size=batch_size, learning_rate=learning_rate)
    observation = observe(cnn(spec()), spec(), pictures(4), LABELS, threat_model=FULL_KNOWLEDGE, recipe=recipe)
    return inversion_problem(observation, "automatic", torch.Generator().manual_seed(0))


def judged(problem: InversionProblem, *candidates: int | str) -> FaithfulSimulation:
    fidelity = FaithfulSimulation(problem, torch.Generator().manual_seed(1), candidates=candidates or None)  # type: ignore[arg-type]
    fidelity.judge(pictures(4))
    return fidelity


def test_small_steps_are_followed_by_few_gradients_and_large_ones_are_not() -> None:
    assert judged(problem_of(1e-3), 1, "full").simulation == 1
    assert judged(problem_of(2.0), 1, "full").simulation == "full"


def test_it_passes_over_what_diverges_and_stops_at_the_first_that_is_good_enough() -> None:
    problem, true = problem_of(1.0), pictures(4)
    energy = layer_weighted_vector(problem.observed).square().sum()
    with torch.no_grad():
        coarse = layer_weighted_vector(problem.simulate(true, 1))
    assert (coarse - layer_weighted_vector(problem.observed)).square().sum() > 0.3 * energy
    assert judged(problem, 1, "full", "fedsgd").simulation == "full"


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, "merged_10"), (2, "merged_5"), (5, "merged_2"), (4, "merged_2"), (10, None), (None, None)],
)
def test_batches_are_merged_to_ten_images(batch_size: int | None, expected: str | None) -> None:
    recipe = LocalTraining(epochs=10, batch_size=batch_size, learning_rate=0.1)
    assert candidates_for(recipe) == tuple(name for name in (5, expected, "full") if name is not None)


def test_larger_steps_make_the_order_count_for_more() -> None:
    small, large = (judged(problem_of(rate, batch_size=2)).noise for rate in (1e-3, 0.3))
    assert 0 < small < 0.1 * large


def test_a_granted_order_is_no_noise() -> None:
    problem = problem_of(0.3, batch_size=2)
    known = judged(replace(problem, order=torch.arange(4).expand(6, 4)))
    assert known.noise == 0


def test_it_never_goes_back() -> None:
    fidelity = judged(problem_of(2.0), 1, "full")
    fidelity.judge(torch.full((4, 1, 8, 8), 0.4))  # a grey page, of which any simulation makes little
    assert fidelity.simulation == "full"


def test_a_rise_is_looked_into_once() -> None:
    fidelity = FaithfulSimulation(problem_of(1e-3), torch.Generator(), candidates=(1, "full"))
    fidelity.tell(torch.tensor(1.0))
    fidelity.tell(torch.tensor(2.0))
    fidelity.judge(pictures(4))
    fidelity.tell(torch.tensor(2.0))  # as high as before, though the simulation was found to be good
    assert not fidelity._is_due


def test_it_looks_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = FaithfulSimulation(problem_of(1.0), torch.Generator(), candidates=(1, "full"))
    looks: list[int] = []
    monkeypatch.setattr(fidelity, "judge", lambda _: looks.append(1))
    counts = []
    for _ in range(20):
        fidelity.look(pictures(4))
        counts.append(len(looks))
    assert counts == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("loss", [1.6, float("nan")])
def test_a_loss_that_rises_has_it_look_at_once(monkeypatch: pytest.MonkeyPatch, loss: float) -> None:
    fidelity = FaithfulSimulation(problem_of(1.0), torch.Generator(), candidates=(1, "full"))
    looks: list[int] = []
    monkeypatch.setattr(fidelity, "judge", lambda _: looks.append(1))
    for told in (1.0, 1.4, loss):
        fidelity.tell(torch.tensor(told))
        fidelity.look(pictures(4))
    assert len(looks) == 2  # the second call as ever, and the third


def test_the_attack_takes_it_and_says_what_it_took() -> None:
    recipe = LocalTraining(epochs=20, batch_size=2, learning_rate=0.3)
    observation = observe(cnn(spec()), spec(), pictures(4), LABELS, threat_model=FULL_KNOWLEDGE, recipe=recipe)
    # In the end a name stands there, as five gradients miss too much.
    for simulation, said in ((5, "simulation 5 misses"), ("as_needed", "simulation '")):
        attack = FeatureSpan(simulation=simulation, steps=8, rounds=1, round_steps=1, orders=2, start_noise=1.0)
        result = attack(observation, generator=torch.Generator().manual_seed(0))
        assert any(said in remark for remark in result.remarks), result.remarks
