"""Attacks on many recorded updates: planned, spread over processes, resumed, and scored as they come in.

Every (round, client, seed) of a setting is one task. Finished tasks are skipped, so that an interrupted campaign goes
on where it was; a failed task is reported and does not stop the others.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from typing import Any

import torch

from attacker.attack import Progress
from attacker.attack_store import AttackSetting, AttackStore, ResultKey
from attacker.attack_worker import (
    AttackTask,
    GrantedLayer,
    TaskProgress,
    build_model,
    make_attack,
    prepare_worker,
    run_task_in_worker,
)
from attacker.observation import NotGrantedError, ThreatModel
from attacker.threat_models import THREAT_MODELS
from attacker.truth import read_truth
from fl_sim.config import AttackConfig, Selection, is_selected
from fl_sim.errors import ConfigError, FlSimError
from fl_sim.run_store import RunStore

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a campaign will do.

    Attributes:
        setting: The attack.
        tasks: What is still to be done.
        finished: What was done before.
    """

    setting: AttackSetting
    tasks: tuple[AttackTask, ...]
    finished: tuple[ResultKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailure:
    """A task that ended without a result, and why."""

    key: ResultKey
    reason: str


class CampaignObserver:
    """Told what happens in a campaign; every method may be overridden."""

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        """A step of a running task."""

    def on_finished(self, key: ResultKey) -> None:
        """The result of a task is written."""

    def on_failed(self, failure: TaskFailure) -> None:
        """A task ended without a result."""


def resolve_setting(config: AttackConfig) -> AttackSetting:
    """Fill in every hyper-parameter, so that a setting says all that was run.

    Raises:
        ConfigError: For an unknown attack or threat model, or a hyper-parameter that does not fit.
    """
    threat_model = THREAT_MODELS[config.threat_model]
    setting = AttackSetting(name=config.name, options=config.options, threat_model=threat_model.name)
    attack = make_attack(setting)
    # A user's own attack need not be a dataclass; its options are then what was given.
    options: dict[str, Any] = asdict(attack) if is_dataclass(attack) else config.options  # type: ignore[call-overload]
    return replace(setting, options=options, cohort=config.cohort)


def plan_campaign(run: RunStore, config: AttackConfig) -> Plan:
    """Decide which updates are attacked.

    Args:
        run: The run.
        config: The attack, the rounds, the clients and the seeds.

    Raises:
        ConfigError: If the setting is wrong or nothing of the recording is selected.
        MissingDataError: If the threat model grants a piece of the truth and the truth is gone.
        RecordingError: If the recording cannot be read.
    """
    setting = resolve_setting(config)
    store = AttackStore(run.attacks / setting.label)
    keys = [
        ResultKey(server_round=server_round, client_id=cohort[0], seed=seed, others=cohort[1:])
        for server_round in _selected("rounds", config.rounds, run.recording.rounds())
        for cohort in _cohorts(run, server_round, config)
        for seed in config.seeds
    ]
    if not keys:
        raise ConfigError(
            f"no stored update matches rounds {_spell(config.rounds)} and clients {_spell(config.clients)}"
            f"{f' in groups of {config.cohort}' if config.cohort > 1 else ''}; "
            f"stored rounds: {list(run.recording.rounds()) or 'none'}"
        )
    finished = tuple(key for key in keys if store.has_result(key))
    grant = _grants(run, THREAT_MODELS[setting.threat_model])
    tasks = tuple(
        grant(AttackTask(recording=run.recording.folder, results=store.folder, setting=setting, key=key))
        for key in keys
        if key not in finished
    )
    return Plan(setting=setting, tasks=tasks, finished=finished)


def run_campaign(
    plan: Plan, *, workers: int | None = None, observer: CampaignObserver | None = None
) -> tuple[TaskFailure, ...]:
    """Run the open tasks of a plan.

    Args:
        plan: What `plan_campaign` returned.
        workers: Processes, each with one torch thread; ``None`` takes one per core, or a single one with a GPU.
        observer: Told about steps and results.

    Returns:
        The tasks that failed; everything else is on disk.
    """
    if not plan.tasks:
        return ()
    observer = observer or CampaignObserver()
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    context = multiprocessing.get_context("spawn")
    progress: multiprocessing.Queue[TaskProgress] = context.Queue()
    num_workers = min(len(plan.tasks), workers or _default_workers())
    executor = ProcessPoolExecutor(num_workers, context, initializer=prepare_worker, initargs=(progress,))
    try:
        futures = {executor.submit(run_task_in_worker, task): task for task in plan.tasks}
        return _watch(futures, progress, observer)
    except BaseException:
        # Workers ignore Ctrl-C; they are ended here, and what they had not written is done again next time.
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        executor.shutdown()
        progress.close()


def _grants(run: RunStore, threat_model: ThreatModel) -> Callable[[AttackTask], AttackTask]:
    """Return what adds to a task the pieces of truth that the threat model grants, and no others."""
    if not (threat_model.label_counts or threat_model.batch_label_counts or threat_model.batch_statistics):
        return lambda task: task
    truth, manifest = read_truth(run.folder), run.recording.read_manifest()
    model = build_model(manifest) if threat_model.batch_statistics else None

    @cache
    def layers(server_round: int, client_id: int) -> tuple[GrantedLayer, ...] | None:
        if model is None:
            return None
        record = run.recording.read_round(server_round, [])  # w_t alone: a damaged reply must not stop the others
        statistics = truth.batch_statistics(client_id, model, record)
        return tuple((name, tuple(own.mean.tolist()), tuple(own.variance.tolist())) for name, own in statistics.items())

    def grant(task: AttackTask) -> AttackTask:
        client_id, server_round = task.key.client_id, task.key.server_round
        counts = batch_counts = None
        if threat_model.label_counts:
            counts = tuple(tuple(truth.label_counts(own).tolist()) for own in task.key.clients)
        if threat_model.batch_label_counts:
            steps = truth.batch_label_counts(client_id, server_round, manifest.local_training)
            batch_counts = tuple(map(tuple, steps.tolist()))
        statistics = layers(server_round, client_id)
        return replace(task, label_counts=counts, batch_label_counts=batch_counts, batch_statistics=statistics)

    return grant


def _watch(
    futures: dict[Future[None], AttackTask],
    progress: "multiprocessing.Queue[TaskProgress]",
    observer: CampaignObserver,
) -> tuple[TaskFailure, ...]:
    failures: list[TaskFailure] = []
    while futures:
        _report_steps(progress, observer)
        for future in [future for future in futures if future.done()]:
            key = futures.pop(future).key
            reason = _reason(future.exception())
            if reason is None:
                observer.on_finished(key)
            else:
                failures.append(TaskFailure(key=key, reason=reason))
                observer.on_failed(failures[-1])
    return tuple(failures)


def _report_steps(progress: "multiprocessing.Queue[TaskProgress]", observer: CampaignObserver) -> None:
    try:
        step = progress.get(timeout=_SECONDS_BETWEEN_LOOKS)
        while True:
            observer.on_step(step.key, step.progress)
            step = progress.get_nowait()
    except queue.Empty:
        return


def _reason(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, BrokenProcessPool):
        return "the worker process died (out of memory, or killed); run the same command again to resume"
    if isinstance(error, FlSimError | NotGrantedError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _default_workers() -> int:
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _cohorts(run: RunStore, server_round: int, config: AttackConfig) -> list[tuple[int, ...]]:
    """Return what is attacked of a round: its clients in groups, or all where secure aggregation left their mean."""
    aggregated = run.recording.aggregated_clients(server_round)
    if aggregated:
        return [_whole(aggregated, server_round, config)]
    clients = [client for client in run.recording.kept_clients(server_round) if is_selected(config.clients, client)]
    # Groups of full size, by rising id; the rest is not attacked.
    groups = (tuple(clients[start : start + config.cohort]) for start in range(0, len(clients), config.cohort))
    return [group for group in groups if len(group) == config.cohort]


def _whole(aggregated: tuple[int, ...], server_round: int, config: AttackConfig) -> tuple[int, ...]:
    left_out = [client_id for client_id in aggregated if not is_selected(config.clients, client_id)]
    if left_out or config.cohort not in (1, len(aggregated)):
        asked = f"clients {_spell(config.clients)}" if left_out else f"cohort {config.cohort}"
        raise ConfigError(
            f"round {server_round} was securely aggregated over clients {list(aggregated)}, which can only be attacked "
            f"together, got {asked}; leave the choice of clients and cohorts out"
        )
    return aggregated


def _selected(name: str, selection: Selection, available: Sequence[int]) -> list[int]:
    if isinstance(selection, tuple):
        absent = sorted(set(selection) - set(available))
        if absent:
            raise ConfigError(f"{name}: {absent[0]} is not in the recording; recorded: {list(available) or 'none'}")
    return [number for number in available if is_selected(selection, number)]


def _spell(selection: Selection) -> str:
    return selection if isinstance(selection, str) else str(list(selection))
