"""Runs to look at: one that was attacked in two ways, one of the same private images with a defense, one of others."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from attacker.attack_store import AttackStore
from attacker.attack_worker import run_task
from attacker.campaign import plan_campaign
from attacker.results import score_results
from attacker.truth import read_truth
from dashboard.run_index import RunIndex
from fl_sim.config import AttackConfig
from fl_sim.run_store import RunStore

ATTACK = AttackConfig(options={"steps": 3}, name="fedavg_leakage")
BOUND = replace(ATTACK, threat_model="known_label_counts", rounds=(1,), clients=(0,))
NOISE = "defenses=[{name='gaussian_noise', options={stddev=0.01}}]"


def _attacked(run: RunStore, *attacks: AttackConfig) -> RunStore:
    for config in attacks:
        plan = plan_campaign(run, config)
        AttackStore(plan.tasks[0].results).write_setting(plan.setting)
        for task in plan.tasks:
            run_task(task, lambda progress: None)
    score_results(run, read_truth(run.folder), threshold_db=20.0)
    return run


@pytest.fixture(scope="session")
def looked_at(run_tiny, tmp_path_factory) -> Path:
    """The folders ``runs`` and ``defended``; not to be changed."""
    root = tmp_path_factory.mktemp("dashboard")
    first = replace(ATTACK, rounds=(1,), clients=(0, 1))
    runs = {
        "runs/plain": (run_tiny(), (ATTACK, BOUND)),
        "runs/noisy": (run_tiny(NOISE), (first,)),
        "runs/other": (run_tiny("seed=7"), (first,)),
    }
    for name, (run, attacks) in runs.items():
        shutil.copytree(run.folder, root / name)
        _attacked(RunStore(root / name), *attacks)
    shutil.copytree(root / "runs/noisy", root / "defended/study/runs/noisy")
    return root


@pytest.fixture
def folders(looked_at, tmp_path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(looked_at, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def index(looked_at) -> RunIndex:
    return RunIndex(looked_at / "runs", looked_at / "defended")
