"""An attack within a budget: a clock that is ours, so that no test depends on how fast this machine is."""

from dataclasses import replace

import pytest
import torch

from attacker.attack import Outcome, Progress, StopAttackError, ignore_progress
from attacker.attack_worker import observe_update
from attacker.inversion_problem import label_counts
from attacker.recipes import ATTACKS
from audit.within_time import attack_within
from fl_sim.errors import ConfigError


class Clock:
    """Moves on by a second with each question."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def observation(run_tiny):
    run = run_tiny("training.epochs=1", "training.batch_size=6")
    return observe_update(run.recording.folder, 1, [0], "honest_but_curious")


def run(observation, seconds, *, clock=None, **options):
    return attack_within(
        seconds,
        observation,
        name="inverting_gradients",
        options=options,
        draw=lambda: torch.Generator().manual_seed(3),
        clock=clock or Clock(),
    )


def test_no_budget_is_kept_to_one_step_and_still_has_images(observation):
    found = run(observation, 0.5)
    assert found.num_steps == 1
    assert found.reconstruction.outcome is Outcome.STOPPED
    assert found.reconstruction.images.shape == (6, 1, 28, 28)


def test_as_many_steps_as_fit_with_schedules_that_end(observation):
    clock = Clock()
    found = run(observation, 40.0, clock=clock)
    assert 20 < found.num_steps < 40
    assert found.reconstruction.outcome is Outcome.FINISHED
    assert len(found.reconstruction.losses) == found.num_steps - 3  # three were timed
    assert clock.now < 45
    # What was found is what the attack finds when it is planned for so many steps.
    planned = ATTACKS["inverting_gradients"](steps=len(found.reconstruction.losses))
    counts = label_counts(observation, planned.label_recovery, torch.Generator().manual_seed(3))
    told = replace(observation, knowledge=replace(observation.knowledge, label_counts=counts))
    alone = planned(told, generator=torch.Generator().manual_seed(3))
    assert torch.equal(alone.images, found.reconstruction.images)


def test_never_more_steps_than_the_attack_has_and_restarts_for_what_is_left(observation):
    assert run(observation, 100.0, steps=60).num_steps == 3 + 60
    several = run(observation, 100.0, steps=20)
    assert several.num_steps == 3 + 4 * 20
    single = run(observation, 30.0, steps=20)
    assert several.reconstruction.matching_loss <= single.reconstruction.matching_loss


def test_steps_that_take_longer_than_those_that_were_timed_are_cut_off(observation):
    class Slowing(Clock):
        def __call__(self):
            self.now += 1.0 if self.now < 8 else 10.0
            return self.now

    clock = Slowing()
    found = run(observation, 60.0, clock=clock)
    assert found.reconstruction.outcome is Outcome.STOPPED
    assert clock.now < 100


def test_an_attack_without_steps_is_run_as_it_is(observation):
    found = attack_within(
        5.0, observation, name="analytic", options={}, draw=lambda: torch.Generator().manual_seed(0), clock=Clock()
    )
    assert found.num_steps == 0
    assert found.reconstruction.images.shape[1:] == (1, 28, 28)


def test_what_is_no_attack_is_said(observation):
    with pytest.raises(ConfigError, match="unknown attack 'magic'"):
        attack_within(1.0, observation, name="magic", options={}, draw=torch.Generator)
    with pytest.raises(ConfigError, match=r"audit.options: unknown key 'stepz'"):
        run(observation, 1.0, stepz=3)


@pytest.mark.parametrize("name", ["inverting_gradients", "fedavg_leakage", "dlg", "gradinversion"])
def test_any_search_can_be_stopped_and_returns_what_it_has(name, observation):
    seen = []

    def stop(progress: Progress) -> None:
        seen.append(progress.step)
        if progress.step == 3:
            raise StopAttackError

    attack = ATTACKS[name](**({"steps": 9} if name != "gradinversion" else {"steps": 9, "group_size": 1}))
    found = attack(observation, generator=torch.Generator().manual_seed(0), on_step=stop)
    assert found.outcome is Outcome.STOPPED
    assert seen == [1, 2, 3]
    assert len(found.losses) == 3
    assert found.images.isfinite().all()
    whole = attack(observation, generator=torch.Generator().manual_seed(0), on_step=ignore_progress)
    assert torch.equal(whole.losses[:3], found.losses)
