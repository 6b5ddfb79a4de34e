"""The same campaign on Ray: the same results, written here, whatever happens to a worker."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.attack_store import AttackStore
from attacker.campaign import plan_campaign, run_campaign
from attacker.campaign_observer import CampaignObserver
from attacker.observation import Observation
from attacker.recipes.inverting_gradients import InvertingGradients
from fl_sim import seeds
from fl_sim.config import AttackConfig
from fl_sim.run_store import RunStore

pytestmark = pytest.mark.ray


@dataclass(frozen=True, kw_only=True)
class DiesOnce:
    """An attack whose process is killed the first time, and which always refuses the second client."""

    marker: str

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        # Nothing that an attack is given names the client; its randomness does.
        known = [seeds.generator(0, "attack", 1, client).initial_seed() for client in range(3)]
        client = known.index(generator.initial_seed())
        if client == 1:
            raise ValueError("this client cannot be attacked")
        if client == 0 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), 9)
        return InvertingGradients(steps=2)(observation, generator=generator, on_step=on_step)


class Watch(CampaignObserver):
    def __init__(self) -> None:
        self.steps, self.finished, self.failures = 0, [], []

    def on_step(self, key, progress) -> None:
        self.steps += 1

    def on_finished(self, key) -> None:
        self.finished.append(key.client_id)

    def on_failed(self, failure) -> None:
        self.failures.append(failure)


def images(run: RunStore, config: AttackConfig) -> dict[int, torch.Tensor]:
    plan = plan_campaign(run, config)
    store = AttackStore(run.attacks / plan.setting.label)
    return {key.client_id: store.read_result(key).images for key in plan.finished}


@pytest.mark.slow
def test_ray_gives_what_processes_give_and_outlives_a_killed_worker(run_tiny, tmp_path) -> None:
    run = run_tiny("federation.num_rounds=1")
    config = AttackConfig(name="inverting_gradients", options={"steps": 2})
    plain = run_tiny("federation.num_rounds=1")
    assert run_campaign(plan_campaign(plain, config), workers=1) == ()
    watch = Watch()
    assert run_campaign(plan_campaign(run, config), workers="ray", observer=watch) == ()
    assert sorted(watch.finished) == [0, 1, 2]
    assert watch.steps >= 3  # at least the last step of each
    found, expected = images(run, config), images(plain, config)
    assert all(torch.equal(found[client], expected[client]) for client in (0, 1, 2))

    dying = replace(config, name="test_ray_workers:DiesOnce", options={"marker": str(tmp_path / "died")})
    watch = Watch()
    failures = run_campaign(plan_campaign(run, dying), workers="ray", observer=watch)
    assert (tmp_path / "died").exists()
    assert sorted(watch.finished) == [0, 2]
    assert [(failure.key.client_id, failure.reason) for failure in failures] == [
        (1, "ValueError: this client cannot be attacked")
    ]
    assert [task.key.client_id for task in plan_campaign(run, dying).tasks] == [1]
