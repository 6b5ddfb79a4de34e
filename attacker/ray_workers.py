"""Attacks spread over a Ray cluster, or over this machine where there is none.

Observations travel to the workers by value and reconstructions back: only this process touches the run folder, so that
the machines need no common disk, and a worker can see nothing beside its observation. `RAY_ADDRESS` names the cluster.
"""

import itertools
import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from attacker.attack import Reconstruction
from attacker.attack_store import AttackSetting, AttackStore, ResultKey
from attacker.attack_worker import AttackTask, StepReporter, attack_observation, observe
from attacker.campaign_observer import CampaignObserver, TaskFailure, failure_of
from attacker.observation import Observation

_SECONDS_BETWEEN_LOOKS = 0.2
# A worker or a machine that dies takes its attacks with it; they start again elsewhere.
_MAX_RETRIES = 2


def run_on_ray(tasks: Sequence[AttackTask], *, gpu_share: float, observer: CampaignObserver) -> tuple[TaskFailure, ...]:
    """Run tasks as Ray tasks of one core each; results are written here as they come in.

    Args:
        tasks: At least one.
        gpu_share: Of a GPU, for each attack, where the cluster has any.
        observer: Told about steps and results.

    Returns:
        The tasks that failed.
    """
    with _cluster():
        resources = ray.cluster_resources()
        num_gpus = gpu_share if resources.get("GPU") else 0
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=_MAX_RETRIES)(_attack)
        # On this machine: a queue that dies with another one would end the campaign.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        steps = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        try:
            return _run(tasks, remote, steps, at_once=2 * int(resources.get("CPU", 1)), observer=observer)
        finally:
            steps.shutdown(force=True)


@contextmanager
def _cluster() -> Generator[None]:
    """Join the cluster of this process, that of RAY_ADDRESS, or start one on this machine for the time being."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    joins = "RAY_ADDRESS" in os.environ
    # Workers on this machine find the modules that this process finds; other machines have them installed.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}}
    ray.init(
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=environment,
        include_dashboard=None if joins else False,
        num_cpus=None if joins else os.cpu_count(),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _run(
    tasks: Sequence[AttackTask], remote: Any, steps: Queue, *, at_once: int, observer: CampaignObserver
) -> tuple[TaskFailure, ...]:
    failures: list[TaskFailure] = []
    waiting, running = iter(tasks), dict[Any, AttackTask]()

    def fail(failure: TaskFailure) -> None:
        failures.append(failure)
        observer.on_failed(failure)

    while True:
        # Observations hold the weights: no more of them are under way than keep every core busy.
        for task in itertools.islice(waiting, at_once - len(running)):
            try:
                running[remote.remote(task.setting, task.key, observe(task), steps)] = task
            except Exception as error:  # noqa: BLE001  a damaged update must not stop the others
                fail(failure_of(task.key, error))
        if not running:
            return tuple(failures)
        finished, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
        _report_steps(steps, observer)
        for reference in finished:
            task = running.pop(reference)
            try:
                AttackStore(task.results).write_result(task.key, ray.get(reference))
            except RayTaskError as error:
                fail(failure_of(task.key, error.cause or error))
            except RayError as error:
                fail(TaskFailure(key=task.key, reason=f"the worker was lost {_MAX_RETRIES + 1} times: {error}"))
            else:
                observer.on_finished(task.key)


def _attack(setting: AttackSetting, key: ResultKey, observation: Observation, steps: Queue) -> Reconstruction:
    """Run one attack in a worker."""
    torch.set_num_threads(1)
    return attack_observation(setting, key, observation, StepReporter(key, steps.put_nowait))


def _report_steps(steps: Queue, observer: CampaignObserver) -> None:
    try:
        for step in steps.get_nowait_batch(steps.qsize()):
            observer.on_step(step.key, step.progress)
    except Empty:
        return
