"""Attacks side by side: what each finds is what it finds alone, whichever way their simulations are computed."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, bn_cnn, cnn, mlp, observe, pictures, spec
from torch import Tensor

from attacker import inversion_problem as problems
from attacker import joint_simulation
from attacker.attack import Attack, Outcome, Progress, Reconstruction, StopAttackError, ignore_progress
from attacker.inversion_problem import inversion_problem
from attacker.observation import Observation
from attacker.recipes.dlg import DeepLeakage
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.recipes.gradinversion import GradInversion
from attacker.together import attack_together
from attacker.wrappers import BestOf
from fl_sim.records import DeclaredDefense, LocalTraining

DATASET = spec(num_classes=4, side=4)
RECIPE = LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
SHORT = {
    "paper": FedAvgLeakage(steps=6, simulation="full"),
    "shared images": FedAvgLeakage(steps=6, variables="shared", simulation=2, keep="best"),
    "feature span": FeatureSpan(steps=4, rounds=2, round_steps=2, hold=2, orders=3, repair_steps=0, simulation=5),
    "feature span, as needed": FeatureSpan(simulation="as_needed", steps=8, rounds=1, round_steps=2, hold=2, orders=3),
    "feature span, repairs": FeatureSpan(steps=4, rounds=2, round_steps=2, hold=2, orders=3, repair_steps=3),
    "labels searched for": DeepLeakage(steps=2, iterations_per_step=3),
    "group of seeds": GradInversion(steps=3, group_size=2, group_start=1),
}


def client(seed: int = 0, *, model=cnn, recipe: LocalTraining = RECIPE, num_images: int = 3) -> Observation:
    images, labels = pictures(num_images, side=4, seed=seed).double(), (torch.arange(num_images) + seed) % 4
    return observe(model(DATASET).double(), DATASET, images, labels, recipe=recipe, threat_model=FULL_KNOWLEDGE)


def draw(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the batch always; return the numbers of clients that were simulated at once."""
    sizes: list[int] = []
    simulate = joint_simulation.simulate_many_local_updates

    def noted(model, parameters, buffers, images, *args, **options):
        sizes.append(len(images))
        return simulate(model, parameters, buffers, images, *args, **options)

    monkeypatch.setattr(joint_simulation, "simulate_many_local_updates", noted)
    monkeypatch.setattr(joint_simulation, "_WORTH_IT", float("inf"))
    return sizes


def same(one: Reconstruction, other: Reconstruction) -> None:
    torch.testing.assert_close(one.images, other.images, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-6, atol=1e-8)
    assert one.matching_loss == pytest.approx(other.matching_loss, rel=1e-6)
    assert torch.equal(one.labels, other.labels)
    assert one.outcome is other.outcome


@pytest.mark.parametrize("name", SHORT)
def test_clients_at_once_find_what_each_finds_alone(name: str, batches: list[int]) -> None:
    clients, attack = [client(0), client(1), client(2)], SHORT[name]
    together = attack_together(attack, clients, generators=draw(3, 4, 5))
    for own, seed, found in zip(clients, (3, 4, 5), together, strict=True):
        same(found, attack(own, generator=draw(seed)[0]))
    # Not every client has images in doubt, or needs the same simulation, and the others do not wait.
    if name in ("feature span, repairs", "feature span, as needed"):
        assert {3} <= set(batches) <= {2, 3}
    else:
        assert set(batches) == (set() if name == "labels searched for" else {3})


@pytest.mark.parametrize("worth_it", [0.0, float("inf")])
def test_a_batch_of_restarts_finds_what_one_by_one_finds(worth_it: float, batches, monkeypatch) -> None:
    monkeypatch.setattr(joint_simulation, "_WORTH_IT", worth_it)
    attack, own = SHORT["feature span"], client()
    side_by_side = BestOf(attack=attack, restarts=3)(own, generator=draw(0)[0])
    one_by_one = BestOf(attack=attack, restarts=3, side_by_side=False)(own, generator=draw(0)[0])
    same(side_by_side, one_by_one)
    (remark,) = set(side_by_side.remarks) - set(one_by_one.remarks)
    assert remark.startswith(
        "3 attacks computed as one batch, measured at" if worth_it else "3 attacks computed one by"
    )
    assert set(one_by_one.remarks) < set(side_by_side.remarks)
    runs = [attack(own, generator=torch.Generator().manual_seed(seed)) for seed in seeds_of(draw(0)[0], 3)]
    assert len({run.matching_loss for run in runs}) == 3
    assert side_by_side.matching_loss == pytest.approx(min(run.matching_loss for run in runs), rel=1e-6)


def seeds_of(generator: torch.Generator, number: int) -> list[int]:
    return torch.randint(2**62, (number,), generator=generator).tolist()


def test_the_choice_is_measured_and_neither_way_is_always_right(batches: list[int], monkeypatch) -> None:
    monkeypatch.setattr(joint_simulation, "_WORTH_IT", 0.8)
    for seconds, expected in ([1.0, 1.0], True), ([2.9, 1.0], False):
        monkeypatch.setattr(joint_simulation, "_fastest", lambda steps, device, told=seconds: told)
        batches.clear()
        found = attack_together(SHORT["paper"], [client()] * 3, generators=draw(0, 1, 2))
        assert bool(batches) == expected
        share = "0.33" if expected else "0.97"
        assert [f"measured at {share} of the time of one by one" in "".join(one.remarks) for one in found] == [True] * 3


def test_a_step_is_really_timed(batches: list[int], monkeypatch) -> None:
    monkeypatch.setattr(joint_simulation, "_WORTH_IT", 0.0)
    attack_together(SHORT["paper"], [client()] * 2, generators=draw(0, 1))
    assert set(batches) == {2}
    assert 3 <= len(batches) <= 10


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_with_little_memory_the_batch_goes_in_segments(batches: list[int], monkeypatch, momentum: float) -> None:
    recipe = replace(RECIPE, epochs=3, momentum=momentum)
    own, attack = client(recipe=recipe), SHORT["paper"]
    expected = attack(own, generator=draw(1)[0])
    for module in (joint_simulation, problems):
        monkeypatch.setattr(module, "memory_budget", lambda device: 1)
    first, second = attack_together(attack, [own, client(1, recipe=recipe)], generators=draw(1, 2))
    same(first, expected)
    assert any("in segments of" in remark for remark in second.remarks)
    assert batches


@pytest.mark.parametrize("name", ["paper", "group of seeds"])
def test_networks_with_batch_norm(name: str, batches: list[int]) -> None:
    dataset = spec(num_classes=4, side=8)
    clients = [
        observe(
            bn_cnn(dataset).double(),
            dataset,
            pictures(4, seed=seed).double(),
            torch.arange(4),
            recipe=RECIPE,
            threat_model=FULL_KNOWLEDGE,
        )
        for seed in range(2)
    ]
    together = attack_together(SHORT[name], clients, generators=draw(0, 1))
    for seed, found in enumerate(together):
        same(found, SHORT[name](clients[seed], generator=draw(seed)[0]))
    assert bool(batches) == (name == "paper")  # the other watches what the layers are fed with: hooks see no batch


@pytest.mark.parametrize("where", ["example", "step"])
def test_known_clipping_is_followed_in_the_batch(where: str, batches: list[int]) -> None:
    defense = DeclaredDefense(name="clipping", options={"clip_norm": 0.3, "where": where})
    clients = [client(0, model=mlp), client(1, model=mlp)]
    known = [replace(own, knowledge=replace(own.knowledge, defenses=(defense,))) for own in clients]
    together = attack_together(SHORT["paper"], known, generators=draw(0, 1))
    for seed, found in enumerate(together):
        same(found, SHORT["paper"](known[seed], generator=draw(seed)[0]))
        assert not torch.allclose(found.images, SHORT["paper"](clients[seed], generator=draw(seed)[0]).images)
    assert batches


def test_different_shapes_are_not_mixed(batches: list[int]) -> None:
    sizes = (3, 2, 3, 2, 5)
    clients = [client(seed, num_images=size) for seed, size in enumerate(sizes)]
    together = attack_together(SHORT["paper"], clients, generators=draw(*range(5)))
    for seed, found in enumerate(together):
        same(found, SHORT["paper"](clients[seed], generator=draw(seed)[0]))
    assert set(batches) == {2}


def test_one_that_is_stopped_does_not_disturb_the_others(batches: list[int]) -> None:
    attack, clients = SHORT["paper"], [client(0), client(1), client(2)]
    told: list[Progress] = []

    def on_step(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 5:  # the second of the three, in its second step
            raise StopAttackError

    together = attack_together(attack, clients, generators=draw(0, 1, 2), on_step=on_step)
    assert [found.outcome for found in together] == [Outcome.FINISHED, Outcome.STOPPED, Outcome.FINISHED]
    assert [len(found.losses) for found in together] == [6, 2, 6]
    same(together[2], attack(clients[2], generator=draw(2)[0]))
    assert 2 in batches


def test_one_that_fails_ends_all(batches: list[int]) -> None:
    before = threading.active_count()

    def on_step(progress: Progress) -> None:
        if progress.step == 2:
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        attack_together(SHORT["paper"], [client()] * 2, generators=draw(0, 1), on_step=on_step)
    assert threading.active_count() == before


def searching(take: Callable[[int, int], bool]) -> Attack:
    """Return an attack whose seed s goes along the derivative in step t where ``take(s, t)``, and else stands still."""

    def attack(observation: Observation, *, generator: torch.Generator, on_step=ignore_progress) -> Reconstruction:
        seed = generator.initial_seed()
        problem = inversion_problem(observation, "automatic", generator)
        pixels, losses = torch.rand(3, 1, 4, 4, generator=generator).double(), []
        earlier: list[tuple[Tensor, Tensor]] = []
        for step in range(4):
            own = pixels.clone().requires_grad_()
            loss = torch.stack([tensor.square().sum() for tensor in problem.simulate(own, "full").values()]).sum()
            losses.append(loss.item())
            earlier.append((loss, own))
            if take(seed, step):
                for one, leaf in earlier:
                    pixels = pixels - 0.1 * torch.autograd.grad(one, leaf)[0]
                earlier.clear()
        return Reconstruction(
            images=pixels,
            labels=problem.labels,
            matching_loss=losses[-1],
            losses=torch.tensor(losses),
            outcome=Outcome.FINISHED,
            seconds=0.0,
        )

    return attack


def test_derivatives_may_be_taken_late_or_not_at_all(batches: list[int]) -> None:
    attack, own = searching(lambda seed, step: step % (seed + 1) == 0 and seed < 3), client()
    for seed, found in enumerate(attack_together(attack, [own] * 4, generators=draw(0, 1, 2, 3))):
        same(found, attack(own, generator=draw(seed)[0]))
    assert batches


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux lists them")
def test_attacks_take_no_more_threads_than_they_may() -> None:
    code = """
import os, threading, torch
from attacker.company import Company, in_company
from attacker.joint_simulation import JointSimulation
from attacker.lockstep import run_in_lockstep

torch.set_num_threads(1)
images, weights = torch.randn(50, 32, 28, 28), torch.randn(64, 32, 3, 3)

def attack(ask):
    with in_company(Company(ask, JointSimulation(on_step=print))):
        before = set(os.listdir("/proc/self/task"))
        torch.nn.functional.conv2d(images, weights)
        return len(set(os.listdir("/proc/self/task")) - before)  # the thread of the first may end meanwhile

print(*run_in_lockstep([attack, attack], lambda questions: {}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0", "0"]


def test_no_more_side_by_side_than_asked_for(batches: list[int]) -> None:
    found = attack_together(SHORT["paper"], [client()] * 5, generators=draw(*range(5)), at_once=2)
    assert len(found) == 5
    assert set(batches) == {2}
    assert attack_together(SHORT["paper"], [], generators=[]) == []


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(ValueError, match="one architecture and data set"):
        attack_together(SHORT["paper"], [client(), client(model=mlp)], generators=draw(0, 1))
    with pytest.raises(ValueError, match="expected 1 generators, one for each observation, got 2"):
        attack_together(SHORT["paper"], [client()], generators=draw(0, 1))
    with pytest.raises(ValueError, match="at_once must be >= 1, got 0"):
        attack_together(SHORT["paper"], [client()], generators=draw(0), at_once=0)
