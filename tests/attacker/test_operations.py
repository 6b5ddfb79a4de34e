"""What a GPU spends its time on where networks are small: the number of operations that a step starts."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec
from torch.utils._python_dispatch import TorchDispatchMode

from attacker.attack import Attack, OnStep, Reconstruction, ignore_progress
from attacker.joint_simulation import Choice, JointSimulation
from attacker.observation import Observation
from attacker.recipes import FeatureSpan, FedAvgLeakage, InvertingGradients
from attacker.together import attack_together
from fl_sim.records import LocalTraining

# Operations that only look at memory in another way, or reserve it, and start nothing on a device.
_FREE = {
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like"),
    *("empty_strided", "expand", "is_same_size", "new_empty", "new_empty_strided", "permute", "select", "slice"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
}

RECIPE = LocalTraining(epochs=4, batch_size=2, learning_rate=0.01)
ATTACKS: dict[str, tuple[Attack, Attack]] = {
    "inverting gradients": (InvertingGradients(steps=4), InvertingGradients(steps=12)),
    "fedavg leakage": (FedAvgLeakage(steps=4), FedAvgLeakage(steps=12)),
    "feature span, coarse": (FeatureSpan(steps=4, rounds=0), FeatureSpan(steps=12, rounds=0)),
    "feature span, a round": (
        FeatureSpan(steps=1, rounds=1, round_steps=1, hold=4, orders=3),
        FeatureSpan(steps=1, rounds=1, round_steps=3, hold=4, orders=3),
    ),
}


class _Operations(TorchDispatchMode):
    """Counts the operations of the thread that enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += func.overloadpacket.__name__ not in _FREE
        return func(*args, **(kwargs or {}))


def number_of_operations(attack: Attack, at_once: int) -> int:
    """Run the attack on so many clients side by side; return the operations of all of them."""
    counts = [_Operations() for _ in range(at_once + 1)]
    remaining = iter(counts[1:])

    def counted(
        observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        with next(remaining):  # each attack has a thread of its own
            return attack(observation, generator=generator, on_step=on_step)

    data = spec()
    clients = [
        observe(cnn(data), data, pictures(4, seed=seed), torch.arange(4), recipe=RECIPE, threat_model=FULL_KNOWLEDGE)
        for seed in range(at_once)
    ]
    with counts[0]:  # what is computed for all of them together
        attack_together(counted, clients, generators=[torch.Generator().manual_seed(seed) for seed in range(at_once)])
    return sum(own.number for own in counts)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_step_of_32_starts_at_most_four_times_the_operations_of_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(self: JointSimulation, clients: Any, plan: Any) -> Choice:
        plan = replace(plan, segment_length=None)
        return Choice(clients=len(clients), seconds_together=0.0, seconds_alone=1.0, plan=plan)

    # To time both ways would count as well.
    monkeypatch.setattr(JointSimulation, "_measured", taken)
    short, long = ATTACKS[name]

    def of_steps(at_once: int) -> int:
        return number_of_operations(long, at_once) - number_of_operations(short, at_once)

    alone, of_two, of_three, of_four = (of_steps(at_once) for at_once in (1, 2, 3, 4))
    own = of_three - of_two
    assert own == of_four - of_three  # so that more of them can be told from a few
    of_32 = of_two + 30 * own
    assert 0 < of_32 <= 4 * alone, f"{alone / 8:.0f} operations a step, for 32 {of_32 / alone:.1f} times as many"
