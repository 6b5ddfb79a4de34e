"""Attacks on many recorded updates: planned, spread over processes or machines, resumed.

Every (round, client, seed) of a setting is one task, run in a process of this machine or on a Ray cluster. Finished
tasks are skipped, so that an interrupted campaign goes on where it was; a failed task is reported and does not stop the
others.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from typing import Any

import torch

from attacker.attack_store import AttackSetting, AttackStore, ResultKey
from attacker.attack_worker import AttackTask, GrantedLayer, build_model, make_attack
from attacker.campaign_journal import journal
from attacker.campaign_observer import CampaignObserver, TaskFailure
from attacker.observation import ThreatModel
from attacker.process_workers import run_in_processes
from attacker.ray_workers import run_on_ray
from attacker.threat_models import THREAT_MODELS
from attacker.truth import read_truth
from fl_sim.config import AttackConfig, Selection, Workers, is_selected
from fl_sim.errors import ConfigError
from fl_sim.run_store import RunStore


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
    return replace(setting, options=options, cohort=config.cohort, mean_of_rounds=config.mean_of_rounds)


def plan_campaign(run: RunStore, config: AttackConfig, *, snapshots: bool = False) -> Plan:
    """Decide which updates are attacked.

    Args:
        run: The run.
        config: The attack, the rounds, the clients and the seeds.
        snapshots: Whether images are written down while they form, see `attacker.snapshots`.

    Raises:
        ConfigError: If the setting is wrong or nothing of the recording is selected.
        MissingDataError: If the threat model grants a piece of the truth and the truth is gone.
        RecordingError: If the recording cannot be read.
    """
    if snapshots and config.workers == "ray":
        raise ConfigError("snapshots are written by processes of this machine: leave out --workers ray, or --snapshots")
    setting = resolve_setting(config)
    store = AttackStore(run.attacks / setting.label)
    keys = [
        ResultKey(server_round=server_round, client_id=cohort[0], seed=seed, others=cohort[1:])
        for server_round in _selected("rounds", config.rounds, run.recording.rounds())
        for cohort in _cohorts(run, server_round, config)
        if len(_earlier_rounds(run, server_round, cohort[0], config)) == config.mean_of_rounds - 1
        for seed in config.seeds
    ]
    if not keys:
        raise ConfigError(
            f"no stored update matches rounds {_spell(config.rounds)} and clients {_spell(config.clients)}"
            f"{f' in groups of {config.cohort}' if config.cohort > 1 else ''}"
            f"{f' with {config.mean_of_rounds - 1} rounds before them' if config.mean_of_rounds > 1 else ''}; "
            f"stored rounds: {list(run.recording.rounds()) or 'none'}"
        )
    finished = tuple(key for key in keys if store.has_result(key))
    grant = _grants(run, THREAT_MODELS[setting.threat_model])
    tasks = tuple(
        grant(
            AttackTask(
                recording=run.recording.folder,
                results=store.folder,
                setting=setting,
                key=key,
                earlier_rounds=_earlier_rounds(run, key.server_round, key.client_id, config),
                snapshots=snapshots,
            )
        )
        for key in keys
        if key not in finished
    )
    return Plan(setting=setting, tasks=tasks, finished=finished)


def run_campaign(
    plan: Plan,
    *,
    workers: Workers = None,
    gpu_share: float = 1.0,
    observer: CampaignObserver | None = None,
) -> tuple[TaskFailure, ...]:
    """Run the open tasks of a plan.

    Args:
        plan: What `plan_campaign` returned.
        workers: Processes, each with one torch thread; ``None`` takes one per core, or as many as share the GPU;
            ``"ray"`` spreads over a Ray cluster, see `attacker.ray_workers`.
        gpu_share: Of a GPU, for each attack, where there is one.
        observer: Told about steps and results.

    Returns:
        The tasks that failed; everything else is on disk.
    """
    if not plan.tasks:
        return ()
    results = plan.tasks[0].results
    AttackStore(results).write_setting(plan.setting)
    with journal(results, [task.key for task in plan.tasks], observer or CampaignObserver()) as told:
        if workers == "ray":
            return run_on_ray(plan.tasks, gpu_share=gpu_share, observer=told)
        return run_in_processes(plan.tasks, workers=workers or _default_workers(gpu_share), observer=told)


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


def _default_workers(gpu_share: float) -> int:
    return max(1, int(1 / gpu_share)) if torch.cuda.is_available() else os.cpu_count() or 1


def _cohorts(run: RunStore, server_round: int, config: AttackConfig) -> list[tuple[int, ...]]:
    """Return what is attacked of a round: its clients in groups, or all where secure aggregation left their mean."""
    aggregated = run.recording.aggregated_clients(server_round)
    if aggregated:
        return [_whole(aggregated, server_round, config)]
    clients = [client for client in run.recording.kept_clients(server_round) if is_selected(config.clients, client)]
    # Groups of full size, by rising id; the rest is not attacked.
    groups = (tuple(clients[start : start + config.cohort]) for start in range(0, len(clients), config.cohort))
    return [group for group in groups if len(group) == config.cohort]


def _earlier_rounds(run: RunStore, server_round: int, client_id: int, config: AttackConfig) -> tuple[int, ...]:
    """Return the last rounds before this one that hold the client's reply, as many as are averaged with it."""
    if config.mean_of_rounds == 1:
        return ()
    before = [
        earlier
        for earlier in run.recording.rounds()
        if earlier < server_round and client_id in run.recording.kept_clients(earlier)
    ]
    return tuple(before[1 - config.mean_of_rounds :])


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
