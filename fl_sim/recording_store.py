"""The recording: what the server saw, on disk, and nothing else.

    recording/
      manifest.json                what the server knows: model, data specification, recipe of local training
      rounds/0001/global.safetensors      w_t, sent out in round 1
      rounds/0001/client-00003.safetensors    the reply of client 3
      rounds/0001/masked-00003.safetensors    under secure aggregation, the masked vector of client 3 …
      rounds/0001/aggregate.safetensors       … and the mean of all replies, which is all that can be read
      rounds/0001/round.json       N_c, metrics, failures, checksums; written last, so a round is whole or absent
      final.safetensors            the global model after the last round
      central_privacy.json         the guarantee that the published models come with, where there is one

File names follow from round and client id and are never read from a file. `docs/recording-format.md` describes the
format for other readers.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fl_sim.entries import Format, parse_entry
from fl_sim.errors import RecordingError, brief
from fl_sim.files import read_json, read_tensors, write_json, write_tensors
from fl_sim.records import (
    AggregatedUpdate,
    Algorithm,
    ClientUpdate,
    DatasetSpec,
    LocalTraining,
    MaskedReply,
    ReplyFailure,
    RoundRecord,
)
from fl_sim.server_privacy import CentralPrivacy, SecureAggregation

FORMAT = Format("fl-sim-recording", 1)
_MOST_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPart:
    """A table name and its options, as in the experiment."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the server knows before the first round.

    Attributes:
        model: The architecture.
        dataset: Public facts of the data.
        algorithm: What clients send.
        local_training: The recipe that the server hands out.
        parameters: Names of the trainable tensors, in the model's order, which safetensors does not keep.
        buffers: Names of the persistent buffers, in order.
        num_clients: Clients in the federation.
        declared_defenses: Defenses that the clients announce; an adaptive attacker may use them.
        central_privacy: What the server does to published models, or ``None``; the recorded replies are raw.
        secure_aggregation: The protocol's agreed numbers, with ``max_weight`` filled in, or ``None`` without it.
    """

    model: NamedPart
    dataset: DatasetSpec
    algorithm: Algorithm
    local_training: LocalTraining
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    num_clients: int
    declared_defenses: tuple[NamedPart, ...] = ()
    central_privacy: CentralPrivacy | None = None
    secure_aggregation: SecureAggregation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpdateEntry:
    client_id: int
    num_examples: int
    metrics: dict[str, float]
    sha256: str | None  # None: received, but not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _SecureEntry:
    clients: tuple[int, ...]  # in the mean; empty: too few stayed to unmask it
    aggregate_sha256: str | None  # None: received, but not kept
    masked: tuple[_UpdateEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundEntry:
    server_round: int
    global_sha256: str | None
    updates: tuple[_UpdateEntry, ...]
    failures: tuple[ReplyFailure, ...]
    secure_aggregation: _SecureEntry | None = None


class RecordingStore:
    """Reads and writes one recording.

    Raises:
        RecordingError: From every reading method, where a file is missing, damaged, foreign or of another version. The
            message names the file; the other rounds stay readable.
    """

    def __init__(self, folder: Path) -> None:
        """Point at the folder; nothing is read or written yet."""
        self.folder = folder
        self._masked_sha256: dict[tuple[int, int], str] = {}  # of the round that is being recorded

    # Writing, by the server.

    def write_manifest(self, manifest: Manifest) -> None:
        """Write what the server knows."""
        FORMAT.write(self.folder / "manifest.json", asdict(manifest))

    def write_masked_vector(self, server_round: int, client_id: int, vector: Mapping[str, Tensor]) -> None:
        """Write a masked vector as it arrives; `write_round` makes it count.

        Args:
            server_round: The round.
            client_id: Who sent it.
            vector: ``weight``, ``parameters/<name>`` and ``buffers/<name>``: integers modulo the modulus range.
        """
        path = self._masked_path(server_round, client_id)
        self._masked_sha256[server_round, client_id] = write_tensors(path, vector)

    def write_round(self, record: RoundRecord, *, keep_clients: Collection[int], keep_round: bool) -> None:
        """Write one round: first its tensors, then the entry that makes it count.

        Args:
            record: The round.
            keep_clients: Clients whose update is stored; of the others only N_c and metrics are. Masked vectors are
                stored where `write_masked_vector` was called.
            keep_round: Whether any tensor of this round is stored.
        """
        folder = self._round_folder(record.server_round)
        global_sha256 = None
        if keep_round:
            tensors = _join(record.global_parameters, record.global_buffers)
            global_sha256 = write_tensors(folder / "global.safetensors", tensors)
        entries: list[_UpdateEntry] = []
        for update in record.updates:
            sha256 = None
            if keep_round and update.client_id in keep_clients:
                path = self._update_path(record.server_round, update.client_id)
                sha256 = write_tensors(path, _join(update.tensors, update.buffers))
            entries.append(
                _UpdateEntry(
                    client_id=update.client_id,
                    num_examples=update.num_examples,
                    metrics=dict(update.metrics),
                    sha256=sha256,
                )
            )
        entry = _RoundEntry(
            server_round=record.server_round,
            global_sha256=global_sha256,
            updates=tuple(entries),
            failures=record.failures,
            secure_aggregation=self._write_secure(record, keep_round=keep_round),
        )
        FORMAT.write(folder / "round.json", asdict(entry))

    def _write_secure(self, record: RoundRecord, *, keep_round: bool) -> _SecureEntry | None:
        if record.aggregate is None and not record.masked and all(f.stage is None for f in record.failures):
            return None
        aggregate, sha256 = record.aggregate, None
        if aggregate is not None and keep_round:
            sha256 = write_tensors(
                self._aggregate_path(record.server_round), _join(aggregate.tensors, aggregate.buffers)
            )
        return _SecureEntry(
            clients=() if aggregate is None else aggregate.clients,
            aggregate_sha256=sha256,
            masked=tuple(
                _UpdateEntry(
                    client_id=reply.client_id,
                    num_examples=reply.num_examples,
                    metrics=dict(reply.metrics),
                    sha256=self._masked_sha256.pop((record.server_round, reply.client_id), None),
                )
                for reply in record.masked
            ),
        )

    def write_final(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Write the global model after the last round."""
        write_tensors(self.folder / "final.safetensors", _join(parameters, buffers))

    def write_guarantee(self, guarantee: Mapping[str, Any]) -> None:
        """Write what central differential privacy guarantees, as `fl_sim.central_accounting` words it."""
        write_json(self.folder / "central_privacy.json", guarantee)

    def drop_rounds_after(self, server_round: int) -> tuple[int, ...]:
        """Delete the rounds after one, whole or half-written, and return their numbers: a resumed server's first step.

        Args:
            server_round: The last round that stays.
        """
        names = (path.name for path in (self.folder / "rounds").glob("*"))
        later = sorted(number for name in names if (number := _round_number(name)) and number > server_round)
        for number in later:
            shutil.rmtree(self._round_folder(number))
        return tuple(later)

    # Reading, by anyone.

    def read_guarantee(self) -> dict[str, Any] | None:
        """Return what central differential privacy guarantees, or ``None`` where there is none."""
        path = self.folder / "central_privacy.json"
        return read_json(path) if path.exists() else None

    def read_manifest(self) -> Manifest:
        """Return what the server knows."""
        path = self.folder / "manifest.json"
        return parse_entry(Manifest, path, FORMAT.read(path))

    def rounds(self) -> tuple[int, ...]:
        """Return the recorded rounds in order; a round without ``round.json`` never ended and is left out."""
        folder = self.folder / "rounds"
        names = (path.parent.name for path in folder.glob("*/round.json"))
        return tuple(sorted(number for name in names if (number := _round_number(name))))

    def kept_clients(self, server_round: int) -> tuple[int, ...]:
        """Return the clients whose update of that round is stored, in order."""
        entry = self._read_entry(server_round)
        return tuple(update.client_id for update in entry.updates if update.sha256 is not None)

    def aggregated_clients(self, server_round: int) -> tuple[int, ...]:
        """Return the clients of whose replies the mean is stored (secure aggregation), in order; else nobody."""
        secure = self._read_entry(server_round).secure_aggregation
        return () if secure is None or secure.aggregate_sha256 is None else secure.clients

    def read_masked_vector(self, server_round: int, client_id: int) -> dict[str, Tensor]:
        """Return a stored masked vector: ``weight``, ``parameters/<name>`` and ``buffers/<name>``, unsigned integers.

        Raises:
            RecordingError: Also where it was not kept.
        """
        secure = self._read_entry(server_round).secure_aggregation
        kept = {entry.client_id: entry.sha256 for entry in (secure.masked if secure else ()) if entry.sha256}
        if client_id not in kept:
            raise RecordingError(
                f"{self.folder}: no masked vector of client {client_id} in round {server_round} is stored; "
                f"stored: {sorted(kept) or 'none'}"
            )
        manifest = self.read_manifest()
        path = self._masked_path(server_round, client_id)
        vector = read_tensors(path, sha256=kept[client_id])
        names = ["weight", *_file_names(manifest)]
        _check_names(path, vector, names)
        return {name: vector[name] for name in names}

    def read_failures(self, server_round: int) -> tuple[ReplyFailure, ...]:
        """Return the failed replies of a round."""
        return self._read_entry(server_round).failures

    def read_num_examples(self, server_round: int) -> dict[int, int]:
        """Return N_c of each client that replied in a round, kept or not; none under secure aggregation."""
        return {update.client_id: update.num_examples for update in self._read_entry(server_round).updates}

    def read_metrics(self, server_round: int) -> dict[int, dict[str, float]]:
        """Return the further numbers that clients sent in a round, by client."""
        return {update.client_id: update.metrics for update in self._read_entry(server_round).updates}

    def read_round(self, server_round: int, clients: Collection[int] | None = None) -> RoundRecord:
        """Read a round with all stored updates, or with those of some clients.

        Under secure aggregation there are none; the mean is read where it is stored.

        Args:
            server_round: The round, from 1.
            clients: Client ids to read; ``None`` reads all that are stored.

        Raises:
            RecordingError: Also where the round or one of the clients was not kept.
        """
        entry = self._read_entry(server_round)
        kept = {update.client_id: update for update in entry.updates if update.sha256 is not None}
        wanted = sorted(kept if clients is None else clients)
        absent = [client_id for client_id in wanted if client_id not in kept]
        if entry.global_sha256 is None or absent:
            what = f"client {absent[0]} of round {server_round}" if absent else f"round {server_round}"
            hidden = "; secure aggregation hid single updates" if entry.secure_aggregation is not None else ""
            raise RecordingError(
                f"{self.folder}: {what} is not stored; stored clients: {sorted(kept) or 'none'}{hidden}"
            )
        manifest = self.read_manifest()
        path = self._round_folder(server_round) / "global.safetensors"
        parameters, buffers = _read_model(path, manifest, sha256=entry.global_sha256)
        updates: list[ClientUpdate] = []
        for client_id in wanted:
            path = self._update_path(server_round, client_id)
            tensors, update_buffers = _read_model(path, manifest, sha256=kept[client_id].sha256)
            _check_like(path, {**tensors, **update_buffers}, {**parameters, **buffers})
            updates.append(
                ClientUpdate(
                    server_round=server_round,
                    client_id=client_id,
                    num_examples=kept[client_id].num_examples,
                    algorithm=manifest.algorithm,
                    tensors=tensors,
                    buffers=update_buffers,
                    metrics=kept[client_id].metrics,
                )
            )
        return RoundRecord(
            server_round=server_round,
            global_parameters=parameters,
            global_buffers=buffers,
            updates=tuple(updates),
            failures=entry.failures,
            masked=_masked_replies(entry),
            aggregate=self._read_aggregate(entry, manifest, {**parameters, **buffers}),
        )

    def _read_aggregate(
        self, entry: _RoundEntry, manifest: Manifest, like: Mapping[str, Tensor]
    ) -> AggregatedUpdate | None:
        secure = entry.secure_aggregation
        if secure is None or secure.aggregate_sha256 is None:
            return None
        path = self._aggregate_path(entry.server_round)
        tensors, buffers = _read_model(path, manifest, sha256=secure.aggregate_sha256)
        _check_like(path, {**tensors, **buffers}, like)
        sizes = {reply.client_id: reply.num_examples for reply in secure.masked}
        absent = [client_id for client_id in secure.clients if client_id not in sizes]
        if absent:
            raise RecordingError(f"{path}: client {absent[0]} is in the mean, but sent nothing; round.json is damaged")
        return AggregatedUpdate(
            server_round=entry.server_round,
            num_examples={client_id: sizes[client_id] for client_id in secure.clients},
            algorithm=manifest.algorithm,
            tensors=tensors,
            buffers=buffers,
        )

    def read_final(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers of the global model after the last round."""
        return _read_model(self.folder / "final.safetensors", self.read_manifest(), sha256=None)

    def _read_entry(self, server_round: int) -> _RoundEntry:
        path = self._round_folder(server_round) / "round.json"
        entry: _RoundEntry = parse_entry(_RoundEntry, path, FORMAT.read(path))
        if entry.server_round != server_round:
            raise RecordingError(f"{path}: expected round {server_round}, got {entry.server_round}; the file was moved")
        return entry

    def _round_folder(self, server_round: int) -> Path:
        return self.folder / "rounds" / f"{server_round:04d}"

    def _update_path(self, server_round: int, client_id: int) -> Path:
        return self._round_folder(server_round) / f"client-{client_id:05d}.safetensors"

    def _masked_path(self, server_round: int, client_id: int) -> Path:
        return self._round_folder(server_round) / f"masked-{client_id:05d}.safetensors"

    def _aggregate_path(self, server_round: int) -> Path:
        return self._round_folder(server_round) / "aggregate.safetensors"


def _round_number(name: str) -> int | None:
    """Return the round whose folder has this name, or ``None`` where it is none."""
    is_number = name.isascii() and name.isdecimal() and len(name) < _MOST_DIGITS
    return int(name) if is_number and name == f"{int(name):04d}" else None


def _join(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"parameters/{name}": tensor for name, tensor in parameters.items()} | {
        f"buffers/{name}": tensor for name, tensor in buffers.items()
    }


def _read_model(path: Path, manifest: Manifest, *, sha256: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors = read_tensors(path, sha256=sha256)
    _check_names(path, tensors, _file_names(manifest))
    return (
        {name: tensors[f"parameters/{name}"] for name in manifest.parameters},
        {name: tensors[f"buffers/{name}"] for name in manifest.buffers},
    )


def _file_names(manifest: Manifest) -> list[str]:
    return [f"parameters/{name}" for name in manifest.parameters] + [f"buffers/{name}" for name in manifest.buffers]


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Collection[str]) -> None:
    wrong = sorted(tensors.keys() ^ set(expected))
    if wrong:
        names = brief(str(wrong))
        raise RecordingError(f"{path}: expected the tensors that the manifest names; missing or unexpected: {names}")


def _check_like(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, like in expected.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            raise RecordingError(
                f"{path}: tensor {brief(name)!r}: expected {tuple(like.shape)} {like.dtype} as in the global model, "
                f"got {tuple(found.shape)} {found.dtype}"
            )


def _masked_replies(entry: _RoundEntry) -> tuple[MaskedReply, ...]:
    masked = entry.secure_aggregation.masked if entry.secure_aggregation is not None else ()
    return tuple(
        MaskedReply(
            server_round=entry.server_round,
            client_id=reply.client_id,
            num_examples=reply.num_examples,
            metrics=reply.metrics,
        )
        for reply in masked
    )
