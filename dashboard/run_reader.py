"""Reads one run, as a person who knows the truth or as the attacker.

    as the attacker:  manifest.json, rounds, events, attacks that were granted no truth
    with the truth:   all of that, and experiment.toml, scores/, truth/, every attack

What the attacker's view leaves out is never opened, so that no view made from it can show any of it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from attacker.attack import Reconstruction
from attacker.attack_store import AttackSetting, AttackStore, ResultKey, list_attack_stores
from attacker.campaign_journal import CampaignEntry, journal_path, read_journal
from attacker.observation import ThreatModel
from attacker.report.collect import describe_run
from attacker.results import ResultSummary, read_score, score_path
from attacker.scoring import Score
from attacker.snapshots import Snapshot, read_snapshot, snapshot_path
from attacker.threat_models import THREAT_MODELS
from attacker.truth import PrivateBatch, Truth, read_truth
from dashboard.file_cache import FileCache, signature
from dashboard.run_index import UnknownRunError
from fl_sim.config import Experiment
from fl_sim.errors import FlSimError
from fl_sim.events import Event, read_events
from fl_sim.recording_store import Manifest
from fl_sim.run_store import RoundEvaluation, RunStore

_TEXTS = FileCache(20_000)
_TENSORS = FileCache(64)
_DATA_SETS = FileCache(2)


class HiddenError(FlSimError):
    """What was asked for is not shown in the attacker's view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One attack setting of a run.

    Attributes:
        label: Name of its folder.
        attack: The attack.
        threat_model: What it was granted.
        store: Its results.
    """

    label: str
    attack: AttackSetting
    threat_model: ThreatModel
    store: AttackStore


class RunReader:
    """Reads one run.

    Raises:
        RecordingError: From every method, where a file is missing, damaged or foreign.
    """

    def __init__(self, run: RunStore, *, sees_truth: bool) -> None:
        """Read as the attacker unless ``sees_truth``."""
        self.run = run
        self.sees_truth = sees_truth

    def experiment(self) -> Experiment:
        """Return the experiment, which names the private images.

        Raises:
            HiddenError: In the attacker's view.
        """
        self._require_truth("the experiment file")
        return _TEXTS.get("experiment", self.run.folder / "experiment.toml", self.run.experiment)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return all about the setting, name and value in words.

        Raises:
            HiddenError: In the attacker's view.
        """
        path, experiment = self.run.folder / "status.json", self.experiment()
        return _TEXTS.get(f"facts {len(self.rounds())}", path, lambda: describe_run(self.run, experiment))

    def manifest(self) -> Manifest:
        """Return what the server knows."""
        recording = self.run.recording
        return _TEXTS.get("manifest", recording.folder / "manifest.json", recording.read_manifest)

    def evaluations(self) -> tuple[RoundEvaluation, ...]:
        """Return the tests of the global model."""
        return _TEXTS.get("evaluations", self.run.folder / "evaluations.json", self.run.evaluations)

    def events(self) -> list[Event]:
        """Return what has happened in the federation."""
        path = self.run.events_path
        return _TEXTS.get("events", path, lambda: read_events(path))

    def rounds(self) -> tuple[int, ...]:
        """Return the recorded rounds."""
        return self.run.recording.rounds()

    def round_path(self, server_round: int) -> Path:
        """Return where the entry of a round stands."""
        return self.run.recording.folder / "rounds" / f"{server_round:04d}" / "round.json"

    def kept_clients(self, server_round: int) -> tuple[int, ...]:
        """Return the clients whose update of a round is stored."""
        recording = self.run.recording
        path = self.round_path(server_round)
        return _TEXTS.get("kept", path, lambda: recording.kept_clients(server_round))

    def aggregated_clients(self, server_round: int) -> tuple[int, ...]:
        """Return the clients of whose replies the mean is stored."""
        recording = self.run.recording
        path = self.round_path(server_round)
        return _TEXTS.get("aggregated", path, lambda: recording.aggregated_clients(server_round))

    def failures(self, server_round: int) -> tuple[str, ...]:
        """Return the failed replies of a round, in words."""
        recording = self.run.recording
        found = _TEXTS.get("failures", self.round_path(server_round), lambda: recording.read_failures(server_round))
        return tuple(f"client {failure.client_id}: {failure.reason}" for failure in found)

    def settings(self) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
        """Return the attack settings that this view shows, and a sentence for each that cannot be read."""
        found: list[Setting] = []
        problems: list[str] = []
        for store in list_attack_stores(self.run.attacks):
            try:
                attack = _TEXTS.get("setting", store.folder / "setting.json", store.read_setting)
                threat_model = THREAT_MODELS[attack.threat_model]
            except FlSimError as error:
                problems.append(str(error))
                continue
            if self.sees_truth or not uses_truth(threat_model):
                found.append(Setting(label=store.folder.name, attack=attack, threat_model=threat_model, store=store))
        return tuple(found), tuple(problems)

    def num_hidden(self) -> int:
        """Return how many attack settings the attacker's view leaves out."""
        return (
            0 if self.sees_truth else len(RunReader(self.run, sees_truth=True).settings()[0]) - len(self.settings()[0])
        )

    def setting(self, label: str) -> Setting:
        """Return one attack setting.

        Raises:
            UnknownRunError: If this view has none of that name.
        """
        for setting in self.settings()[0]:
            if setting.label == label:
                return setting
        raise UnknownRunError(f"no attack {label[:80]!r} is shown for this run; it was deleted, or is hidden here")

    def summaries(self, setting: Setting) -> tuple[tuple[ResultSummary, ...], tuple[str, ...]]:
        """Return the results of a setting without their images, and a sentence for each that cannot be read."""
        found: list[ResultSummary] = []
        problems: list[str] = []
        for key in setting.store.finished():
            try:
                found.append(self.summary(setting, key))
            except FlSimError as error:
                problems.append(str(error))
        return tuple(found), tuple(problems)

    def summary(self, setting: Setting, key: ResultKey) -> ResultSummary:
        """Return one result without its images."""
        outcome = setting.store.folder / key.folder_name / "outcome.json"
        return ResultSummary(
            key=key,
            setting=setting.attack,
            threat_model=setting.threat_model,
            ending=_TEXTS.get("ending", outcome, lambda: setting.store.read_ending(key)),
            score=self._score(setting, key),
        )

    def reconstruction(self, setting: Setting, key: ResultKey) -> Reconstruction:
        """Return the images of one result."""
        return _TENSORS.get("result", self.result_path(setting, key), lambda: setting.store.read_result(key))

    def result_path(self, setting: Setting, key: ResultKey) -> Path:
        """Return the file that is written last of a result."""
        return setting.store.folder / key.folder_name / "outcome.json"

    def snapshot(self, setting: Setting, key: ResultKey) -> Snapshot | None:
        """Return what a running attack has found so far, where it says so."""
        folder = setting.store.folder / key.folder_name
        path = snapshot_path(folder)
        if self.result_path(setting, key).exists() or not path.exists():
            return None
        return _TENSORS.get("snapshot", path, lambda: read_snapshot(folder))

    def campaign(self, setting: Setting) -> CampaignEntry | None:
        """Return where the last campaign of a setting stands."""
        return _TEXTS.get("journal", journal_path(setting.store.folder), lambda: read_journal(setting.store.folder))

    def truth_key(self) -> str:
        """Return what is the same for runs in which all clients hold the same images; empty where nobody knows.

        Raises:
            HiddenError: In the attacker's view.
        """
        self._require_truth("which images are private")
        path = self.truth_path
        if not path.is_file():
            return ""
        return _TEXTS.get("truth key", path, lambda: hashlib.sha256(path.read_bytes()).hexdigest()[:16])

    @property
    def truth_path(self) -> Path:
        """The file that says where the private images are."""
        return self.run.folder / "truth" / "truth.json"

    def private_batch(self, clients: tuple[int, ...]) -> PrivateBatch:
        """Return what clients hold.

        Raises:
            HiddenError: In the attacker's view.
            MissingDataError: If the private images are not at hand.
        """
        self._require_truth("a private image")
        truth = self.truth()
        return _TENSORS.get(f"private {clients}", self.truth_path, lambda: truth.private_batch(*clients))

    def truth(self) -> Truth:
        """Return the private images of all clients.

        Raises:
            HiddenError: In the attacker's view.
            MissingDataError: If they are not at hand.
        """
        self._require_truth("the truth")
        return _DATA_SETS.get("truth", self.truth_path, lambda: read_truth(self.run.folder))

    def _score(self, setting: Setting, key: ResultKey) -> Score | None:
        if not self.sees_truth:
            return None
        path = score_path(self.run, setting.label, key)
        return _TEXTS.get("score", path, lambda: read_score(self.run, setting.label, key))

    def _require_truth(self, what: str) -> None:
        if not self.sees_truth:
            raise HiddenError(f"the attacker's view does not show {what}")


def uses_truth(threat_model: ThreatModel) -> bool:
    """Say whether an attack was given a piece of the truth, so that its result tells it."""
    return threat_model.label_counts or threat_model.batch_label_counts or threat_model.batch_statistics


def result_signature(reader: RunReader, setting: Setting, key: ResultKey) -> str:
    """Return a text that changes with a result."""
    return str(signature(reader.result_path(setting, key)))
