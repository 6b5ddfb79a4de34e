"""Reconstructions on disk.

    attacks/fedavg_leakage-1f3a9c20/
      setting.json                            name, hyper-parameters, threat model
      r0001-c00003-s0/reconstruction.safetensors    images, labels, losses
      r0001-c00003-s0/outcome.json            outcome, matching loss, seconds, checksum; written last

A result is whole or absent, so that an interrupted campaign resumes where it was. There is no truth in this folder.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.attack import Outcome, Reconstruction
from fl_sim.errors import RecordingError, brief
from fl_sim.files import read_json, read_tensors, write_json, write_tensors

_KINDS = {"name": str, "options": dict, "threat_model": str, "cohort": int}
_RESULT_NAME = re.compile(r"r(\d{4,})-c(\d{5,}(?:\+\d{5,})*)-s(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSetting:
    """One attack with all its hyper-parameters under one threat model.

    Attributes:
        name: A name of ATTACKS.
        options: Every hyper-parameter, defaults included.
        threat_model: A name of THREAT_MODELS.
        cohort: Clients whose mean update is attacked; 1 attacks each update by itself.
        mean_of_rounds: Rounds over which a client's replies are averaged; 1 attacks each reply by itself.
    """

    name: str
    options: dict[str, Any]
    threat_model: str
    cohort: int = 1
    mean_of_rounds: int = 1

    @property
    def label(self) -> str:
        """A folder name that differs wherever the setting differs."""
        fields = asdict(self)
        for name in ("cohort", "mean_of_rounds"):
            if fields[name] == 1:
                del fields[name]  # what was attacked before there were such means keeps its folder
        content = json.dumps(fields, sort_keys=True, default=str)
        return f"{self.name.rpartition(':')[2]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ResultKey:
    """Which update was attacked, and with which seed.

    Attributes:
        server_round: The round.
        client_id: The client, or the first of several.
        seed: Of the attack.
        others: The further clients where the mean of several updates was attacked.
    """

    server_round: int
    client_id: int
    seed: int
    others: tuple[int, ...] = ()

    @property
    def clients(self) -> tuple[int, ...]:
        """All clients behind the update."""
        return (self.client_id, *self.others)

    @property
    def clients_text(self) -> str:
        """All clients behind the update, as a person reads them."""
        return "+".join(map(str, self.clients))

    @property
    def folder_name(self) -> str:
        """The key as a folder name."""
        clients = "+".join(f"{client_id:05d}" for client_id in self.clients)
        return f"r{self.server_round:04d}-c{clients}-s{self.seed}"

    @classmethod
    def parse(cls, folder_name: str) -> "ResultKey | None":
        """Read a folder name back; ``None`` if it is none of ours."""
        match = _RESULT_NAME.fullmatch(folder_name)
        if match is None:
            return None
        server_round, clients, seed = match.groups()
        client_id, *others = map(int, clients.split("+"))
        return cls(server_round=int(server_round), client_id=client_id, seed=int(seed), others=tuple(others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A `Reconstruction` without its tensors; the matching loss is NaN where it was not finite."""

    outcome: Outcome
    matching_loss: float
    seconds: float
    remarks: tuple[str, ...]


class AttackStore:
    """The results of one attack setting.

    Raises:
        RecordingError: From the reading methods, where a file is missing, damaged or foreign.
    """

    def __init__(self, folder: Path) -> None:
        """Point at the folder of the setting."""
        self.folder = folder

    def write_setting(self, setting: AttackSetting) -> None:
        """Say what is run here."""
        # Tuples and enumerations become what JSON has for them.
        write_json(self.folder / "setting.json", json.loads(json.dumps(asdict(setting), default=str)))

    def read_setting(self) -> AttackSetting:
        """Return what was run here."""
        path = self.folder / "setting.json"
        fields = read_json(path)
        if any(name in fields and not isinstance(fields[name], kind) for name, kind in _KINDS.items()):
            raise RecordingError(f"{path}: a value has the wrong type; the file is damaged or foreign")
        try:
            return AttackSetting(**fields)
        except TypeError as error:
            raise RecordingError(f"{path}: {brief(error)}; the file is damaged or of another version") from error

    def write_result(self, key: ResultKey, reconstruction: Reconstruction) -> None:
        """Write one result; the outcome last, so that the result counts only once it is whole."""
        folder = self.folder / key.folder_name
        tensors = {name: getattr(reconstruction, name) for name in ("images", "labels", "losses")}
        sha256 = write_tensors(folder / "reconstruction.safetensors", tensors)
        finite = torch.isfinite(torch.tensor(reconstruction.matching_loss)).item()
        write_json(
            folder / "outcome.json",
            {
                "outcome": reconstruction.outcome.name,
                "matching_loss": reconstruction.matching_loss if finite else None,
                "seconds": round(reconstruction.seconds, 3),
                "remarks": list(reconstruction.remarks),
                "sha256": sha256,
            },
        )

    def has_result(self, key: ResultKey) -> bool:
        """Say whether a result is there and whole."""
        try:
            self.read_result(key)
        except RecordingError:
            return False
        return True

    def read_result(self, key: ResultKey) -> Reconstruction:
        """Return one result."""
        folder = self.folder / key.folder_name
        fields = read_json(folder / "outcome.json")
        try:
            tensors = read_tensors(folder / "reconstruction.safetensors", sha256=str(fields["sha256"]))
            _check_tensors(tensors)
            ending = _ending(fields)
            return Reconstruction(
                images=tensors["images"],
                labels=tensors["labels"],
                losses=tensors["losses"],
                matching_loss=ending.matching_loss,
                outcome=ending.outcome,
                seconds=ending.seconds,
                remarks=ending.remarks,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(
                f"{folder}: {brief(repr(error))}; the result is damaged or of another version"
            ) from error

    def read_ending(self, key: ResultKey) -> Ending:
        """Return how an attack ended; its images are not read."""
        path = self.folder / key.folder_name / "outcome.json"
        try:
            return _ending(read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path}: {brief(repr(error))}; it is damaged or of another version") from error

    def finished(self) -> tuple[ResultKey, ...]:
        """Return the results that ended, by round, client and seed."""
        found = (ResultKey.parse(path.parent.name) for path in self.folder.glob("*/outcome.json"))
        return tuple(sorted(key for key in found if key is not None))


def _ending(fields: Mapping[str, Any]) -> Ending:
    matching_loss = fields["matching_loss"]
    return Ending(
        outcome=Outcome[fields["outcome"]],
        matching_loss=float("nan") if matching_loss is None else float(matching_loss),
        seconds=float(fields["seconds"]),
        remarks=tuple(str(remark) for remark in fields.get("remarks", ())),
    )


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    images, labels, losses = (tensors[name] for name in ("images", "labels", "losses"))
    if images.ndim != 4 or labels.shape != images.shape[:1] or losses.ndim != 1:
        raise ValueError("images, labels and losses have not the shapes (N, C, H, W), (N,) and (T,)")
    if not images.is_floating_point() or labels.is_floating_point() or not losses.is_floating_point():
        raise ValueError("images and losses must be floating, labels whole numbers")


def list_attack_stores(attacks_folder: Path) -> tuple[AttackStore, ...]:
    """Return the stores below ``attacks/``, by name."""
    return tuple(AttackStore(path.parent) for path in sorted(attacks_folder.glob("*/setting.json")))
