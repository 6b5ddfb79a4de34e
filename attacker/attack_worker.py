"""One attack on one recorded update, in a process of its own.

    recording -> ThreatModel.observe -> attack -> attacks/…

This process never imports the truth: what a threat model grants of it arrives in the task, by value.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from attacker.attack import Attack, OnStep, Progress, Reconstruction
from attacker.attack_store import AttackSetting, AttackStore, ResultKey
from attacker.batch_norm import LayerStatistics, Statistics
from attacker.observation import Observation, ThreatModel
from attacker.placement import allow_tf32, on_device
from attacker.recipes import ATTACKS
from attacker.snapshots import SnapshotWriter, remove_snapshot
from attacker.threat_models import THREAT_MODELS
from fl_sim.errors import FlSimError, RecordingError, brief
from fl_sim.models import MODELS
from fl_sim.options import build
from fl_sim.recording_store import Manifest, RecordingStore
from fl_sim.records import DeclaredDefense, RoundRecord
from fl_sim.seeds import generator

_SECONDS_BETWEEN_REPORTS = 0.2

GrantedLayer: TypeAlias = tuple[str, tuple[float, ...], tuple[float, ...]]
"""Name, means and variances of a BatchNorm layer, as plain values that travel to another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTask:
    """Everything that a worker needs.

    Attributes:
        recording: Folder of the recording.
        results: Folder of the attack setting, where the result goes.
        setting: The attack.
        key: Round, client and seed.
        label_counts: True counts of each client, shape (clients, K), where the threat model grants them.
        batch_label_counts: True counts of every local step, shape (U, K), where the threat model grants them.
        batch_statistics: Layer, means and variances of the private batch, where the threat model grants them.
        earlier_rounds: Rounds whose replies of the same client are averaged with that of the key's.
        snapshots: Whether the images are written down every other second while they form.
    """

    recording: Path
    results: Path
    setting: AttackSetting
    key: ResultKey
    label_counts: tuple[tuple[int, ...], ...] | None = None
    batch_label_counts: tuple[tuple[int, ...], ...] | None = None
    batch_statistics: tuple[GrantedLayer, ...] | None = None
    earlier_rounds: tuple[int, ...] = ()
    snapshots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress:
    """A step of a task, on its way to whoever watches."""

    key: ResultKey
    progress: Progress


def make_attack(setting: AttackSetting) -> Attack:
    """Build an attack from its setting.

    Raises:
        ConfigError: For an unknown attack or a hyper-parameter that does not fit.
    """
    return build(ATTACKS[setting.name], setting.options, where="attack.options")


def build_model(manifest: Manifest) -> nn.Module:
    """Build a recording's architecture; its weights mean nothing.

    Raises:
        ConfigError: If the model is unknown here.
    """
    return build(
        MODELS[manifest.model.name],
        manifest.model.options,
        where="model.options",
        dataset=manifest.dataset,
        generator=torch.Generator(),  # the weights are replaced by the recorded ones
    )


def observe(task: AttackTask) -> Observation:
    """Build the input of a task's attack; see `observe_update`."""
    return observe_update(
        task.recording,
        task.key.server_round,
        task.key.clients,
        task.setting.threat_model,
        label_counts=None if task.label_counts is None else torch.tensor(task.label_counts),
        batch_label_counts=None if task.batch_label_counts is None else torch.tensor(task.batch_label_counts),
        batch_statistics=None if task.batch_statistics is None else _statistics(task.batch_statistics),
        earlier_rounds=task.earlier_rounds,
    )


def observe_update(
    recording_folder: Path,
    server_round: int,
    clients: Sequence[int],
    threat_model_name: str,
    *,
    label_counts: torch.Tensor | None = None,
    batch_label_counts: torch.Tensor | None = None,
    batch_statistics: Statistics | None = None,
    earlier_rounds: Sequence[int] = (),
) -> Observation:
    """Build what the server sees of one recorded update, or of the mean of several.

    Args:
        recording_folder: Folder of the recording.
        server_round: The round, from 1.
        clients: The client, or several of which the server sees the mean only: under secure aggregation, all that are
            in the recorded mean.
        threat_model_name: A name of THREAT_MODELS.
        label_counts: True counts of each client, shape (clients, K); used only where the threat model grants them.
        batch_label_counts: True counts of every local step, shape (U, K); likewise.
        batch_statistics: Of the private batch at w_t, by BatchNorm layer; likewise.
        earlier_rounds: Rounds whose replies of the same client are averaged with this one.

    Raises:
        ConfigError: If the threat model is unknown.
        RecordingError: If the update is not stored or damaged.
        ValueError: If a piece of the truth is granted but absent.
    """
    recording = RecordingStore(recording_folder)
    manifest = recording.read_manifest()
    aggregated = recording.aggregated_clients(server_round)
    if aggregated and tuple(clients) != aggregated:
        raise RecordingError(
            f"{recording_folder}: round {server_round} holds the mean of clients {list(aggregated)} only "
            f"(secure aggregation), not of {list(clients)}"
        )
    record = recording.read_round(server_round, [] if aggregated else list(clients))
    past = [recording.read_round(earlier, list(clients)) for earlier in earlier_rounds]
    _check_architecture(recording_folder, manifest, record)
    threat_model: ThreatModel = THREAT_MODELS[threat_model_name]
    return threat_model.observe(
        model=build_model(manifest),
        dataset=manifest.dataset,
        record=record,
        update=record.updates[0] if record.aggregate is None else record.aggregate,
        others=record.updates[1:],
        earlier=[(earlier, earlier.updates[0]) for earlier in past],
        local_training=manifest.local_training,
        label_counts=label_counts[0] if label_counts is not None and len(clients) == 1 else label_counts,
        batch_label_counts=batch_label_counts,
        batch_statistics=batch_statistics,
        defenses=[DeclaredDefense(name=part.name, options=part.options) for part in manifest.declared_defenses],
    )


def _check_architecture(folder: Path, manifest: Manifest, record: RoundRecord) -> None:
    """Refuse a manifest that names another model than the recorded weights are of, before anything is allocated."""
    try:
        with torch.device("meta"):
            state = build_model(manifest).state_dict()
    except FlSimError:
        raise
    except Exception:  # noqa: BLE001 - a model of a user's own need not know tensors without content
        return
    recorded = {**record.global_parameters, **record.global_buffers}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in recorded.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise RecordingError(
            f"{folder / 'manifest.json'}: model {brief(manifest.model.name)!r} has other tensors than were recorded: "
            f"{brief(str(wrong))}; the file is damaged or foreign"
        )


def _statistics(layers: tuple[GrantedLayer, ...]) -> dict[str, LayerStatistics]:
    return {name: LayerStatistics(torch.tensor(means), torch.tensor(variances)) for name, means, variances in layers}


def run_task(task: AttackTask, on_step: OnStep) -> None:
    """Attack one update and write the result.

    Raises:
        NotGrantedError: If the threat model withholds what the attack needs.
        RecordingError: If the update is not stored or damaged.
    """
    folder = task.results / task.key.folder_name
    watched = SnapshotWriter(folder, on_step) if task.snapshots else on_step
    reconstruction = attack_observation(task.setting, task.key, observe(task), watched)
    AttackStore(task.results).write_result(task.key, reconstruction)
    remove_snapshot(folder)


def attack_observation(
    setting: AttackSetting, key: ResultKey, observation: Observation, on_step: OnStep
) -> Reconstruction:
    """Attack one observation, on the GPU where there is one, and in single precision there too.

    Raises:
        NotGrantedError: If the threat model withholds what the attack needs.
    """
    attack = make_attack(setting)
    allow_tf32(is_allowed=False)
    if torch.cuda.is_available():
        observation = on_device(observation, "cuda")
    randomness = generator(key.seed, "attack", key.server_round, key.client_id)
    return attack(observation, generator=randomness, on_step=on_step)


class StepReporter:
    """Sends progress to the parent, a few times a second and at the end."""

    def __init__(self, key: ResultKey, send: Callable[[TaskProgress], None]) -> None:
        """Report the steps of a task.

        Args:
            key: The task.
            send: Gets each report.
        """
        self._key = key
        self._send = send
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        """Report a step, unless the last report is fresh."""
        now = time.monotonic()
        is_last = progress.step >= progress.num_steps
        if is_last or now - self._last > _SECONDS_BETWEEN_REPORTS:
            self._last = now
            # Images and tensors stay in this process.
            told = replace(progress, loss=progress.matching_loss, images=None)
            self._send(TaskProgress(key=self._key, progress=told))
