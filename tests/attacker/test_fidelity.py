"""The simulation becomes more faithful when the matching loss stops falling, and only then."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec

from attacker.fidelity import FidelityLadder
from attacker.recipes import FeatureSpan
from fl_sim.records import LocalTraining

RUNGS = (1, "fedsgd_epoch", "full")


@given(losses=st.lists(st.floats(0, 10), max_size=60), patience=st.integers(1, 9))
def test_it_climbs_in_order_and_never_before_its_patience_ends(losses: list[float], patience: int) -> None:
    ladder, since, before = FidelityLadder(RUNGS, patience=patience, least_gain=0.05), 0, 0
    for loss in losses:
        ladder.tell(torch.tensor(loss))
        rung, since = RUNGS.index(ladder.simulation), since + 1
        assert rung in (before, before + 1)
        if rung > before:
            assert since > patience
            before, since = rung, 0


def test_it_stays_while_the_loss_falls() -> None:
    ladder = FidelityLadder(RUNGS, patience=5, least_gain=0.05)
    for step in range(200):
        ladder.tell(torch.tensor(0.98**step))  # 10 % in five steps, with a jump now and then
        if step % 7 == 3:
            ladder.tell(torch.tensor(2.0))
    assert ladder.simulation == 1
    for _ in range(6):
        ladder.tell(torch.tensor(0.98**200))
    assert ladder.simulation == "fedsgd_epoch"
    for _ in range(100):
        ladder.tell(torch.tensor(0.5))
    assert ladder.simulation == "full"


@pytest.mark.parametrize(("patience", "last"), [(3, "'full'"), (1000, "'fedsgd_epoch'")])
def test_an_attack_says_how_it_followed_the_training_in_the_end(patience: int, last: str) -> None:
    data = spec()
    recipe = LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
    observation = observe(cnn(data), data, pictures(4), torch.arange(4), recipe=recipe, threat_model=FULL_KNOWLEDGE)
    attack = FeatureSpan(
        simulation=("fedsgd_epoch", "full"),
        patience=patience,
        least_gain=0.9,
        steps=12,
        rounds=1,
        round_steps=1,
        orders=3,
    )
    result = attack(observation, generator=torch.Generator().manual_seed(0))
    assert any(f"simulation {last} misses" in remark for remark in result.remarks)


def test_no_simulation_is_refused() -> None:
    with pytest.raises(ValueError, match="simulation must name at least one"):
        FeatureSpan(simulation=())
