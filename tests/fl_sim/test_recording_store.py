"""The recording on disk: round trips, selections, and damage that stays where it is."""

import json
from dataclasses import replace

import pytest
import torch

from fl_sim.errors import RecordingError
from fl_sim.recording_store import Manifest, NamedPart, RecordingStore
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
from fl_sim.server_privacy import SecureAggregation

MANIFEST = Manifest(
    model=NamedPart(name="mlp", options={"widths": [4]}),
    dataset=DatasetSpec(image_shape=(1, 2, 2), num_classes=2, mean=(0.5,), std=(0.2,), class_names=("a", "b")),
    algorithm=Algorithm.FEDAVG,
    local_training=LocalTraining(epochs=2, batch_size=3, momentum=0.5),
    parameters=("w", "a"),
    buffers=("running",),
    num_clients=3,
    declared_defenses=(NamedPart(name="clipping", options={"clip_norm": 1.0}),),
)


@pytest.fixture
def store(tmp_path):
    store = RecordingStore(tmp_path / "recording")
    store.write_manifest(MANIFEST)
    for server_round in (1, 2):
        store.write_round(_record(server_round), keep_clients={0, 2}, keep_round=True)
    return store


def test_manifest_round_trip(store):
    assert store.read_manifest() == MANIFEST


def test_round_trip(store):
    written, read = _record(1), store.read_round(1)
    assert store.rounds() == (1, 2)
    assert list(read.global_parameters) == ["w", "a"]  # in the model's order, not in the file's
    assert torch.equal(read.global_parameters["w"], written.global_parameters["w"])
    assert torch.equal(read.global_buffers["running"], written.global_buffers["running"])
    assert read.failures == written.failures
    for mine, theirs in zip(written.updates, read.updates, strict=True):
        assert (mine.client_id, mine.num_examples, mine.algorithm) == (
            theirs.client_id,
            theirs.num_examples,
            theirs.algorithm,
        )
        assert mine.metrics == theirs.metrics
        assert torch.equal(mine.tensors["w"], theirs.tensors["w"])


def test_only_selected_clients_are_read(store):
    assert [update.client_id for update in store.read_round(1, [2]).updates] == [2]


def test_clients_that_are_not_kept_leave_their_numbers_only(tmp_path):
    store = RecordingStore(tmp_path)
    store.write_manifest(MANIFEST)
    store.write_round(_record(1), keep_clients={2}, keep_round=True)
    store.write_round(_record(2), keep_clients={0, 2}, keep_round=False)
    assert store.kept_clients(1) == (2,)
    assert store.kept_clients(2) == ()
    assert not list(tmp_path.glob("rounds/0002/*.safetensors"))
    with pytest.raises(RecordingError, match=r"client 0 of round 1 is not stored; stored clients: \[2\]"):
        store.read_round(1, [0])


def test_damage_stays_where_it_is(store):
    path = store.folder / "rounds" / "0001" / "client-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordingError, match=r"client-00000\.safetensors.*changed"):
        store.read_round(1)
    assert len(store.read_round(1, [2]).updates) == 1
    assert len(store.read_round(2).updates) == 2


def test_an_unfinished_round_does_not_count(store):
    (store.folder / "rounds" / "0002" / "round.json").unlink()
    assert store.rounds() == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected format 'fl-sim-recording' version 1, got 'other'"),
        ({"version": 2}, "version 2"),
        ({"server_round": 7}, "expected round 1, got 7"),
        ({"updates": [{"client_id": "../../x", "num_examples": 1, "metrics": {}, "sha256": "0"}]}, "client_id"),
        ({"failures": 3}, "failures"),
    ],
)
def test_foreign_entries_are_refused(store, change, message):
    path = store.folder / "rounds" / "0001" / "round.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordingError, match=message):
        store.read_round(1)


def test_foreign_tensors_are_refused(store):
    store.write_final({"w": torch.ones(2), "b": torch.ones(1)}, {"running": torch.zeros(1)})
    with pytest.raises(RecordingError, match=r"final\.safetensors.*'parameters/a', 'parameters/b'"):
        store.read_final()


def test_a_securely_aggregated_round_comes_back(tmp_path):
    store = RecordingStore(tmp_path)
    options = SecureAggregation(num_shares=3, reconstruction_threshold=2, max_weight=7.0)
    store.write_manifest(replace(MANIFEST, secure_aggregation=options))
    vector = {
        name: torch.tensor([4_294_967_294, 0], dtype=torch.uint32)
        for name in ("weight", "parameters/w", "parameters/a", "buffers/running")
    }
    store.write_masked_vector(1, 2, vector)
    written = replace(
        _record(1),
        updates=(),
        failures=(ReplyFailure(server_round=1, client_id=1, reason="gone", stage="share_keys"),),
        masked=tuple(
            MaskedReply(server_round=1, client_id=client_id, num_examples=5 + client_id, metrics={"train-loss": 0.5})
            for client_id in (0, 2)
        ),
        aggregate=AggregatedUpdate(
            server_round=1,
            num_examples={0: 5, 2: 7},
            algorithm=Algorithm.FEDAVG,
            tensors={"w": torch.ones(3), "a": torch.zeros(1)},
            buffers={"running": torch.ones(1)},
        ),
    )
    store.write_round(written, keep_clients=(), keep_round=True)
    read = store.read_round(1)
    assert store.read_manifest().secure_aggregation == options
    assert (read.masked, read.failures, read.updates) == (written.masked, written.failures, ())
    assert (read.aggregate.clients, read.aggregate.num_examples) == ((0, 2), {0: 5, 2: 7})
    assert torch.equal(read.aggregate.tensors["w"], torch.ones(3))
    found = store.read_masked_vector(1, 2)
    assert list(found) == ["weight", "parameters/w", "parameters/a", "buffers/running"]
    assert found["weight"].dtype == torch.uint32
    assert found["weight"].tolist() == [4_294_967_294, 0]
    with pytest.raises(RecordingError, match=r"client 0 in round 1 is stored; stored: \[2\]"):
        store.read_masked_vector(1, 0)
    path = tmp_path / "rounds" / "0001" / "round.json"
    entry = json.loads(path.read_text())
    entry["secure_aggregation"]["clients"] = [0, 1]
    path.write_text(json.dumps(entry))
    with pytest.raises(RecordingError, match="client 1 is in the mean, but sent nothing"):
        store.read_round(1)


def test_recordings_from_before_secure_aggregation_are_read(store):
    for path in (store.folder / "manifest.json", *store.folder.glob("rounds/*/round.json")):
        entry = {
            k: v for k, v in json.loads(path.read_text()).items() if k not in ("secure_aggregation", "central_privacy")
        }
        for failure in entry.get("failures", ()):
            del failure["stage"]
        path.write_text(json.dumps(entry))
    assert store.read_manifest() == MANIFEST
    assert store.read_round(1).aggregate is None
    assert store.aggregated_clients(1) == ()


def test_final_model_round_trip(store):
    store.write_final({"w": torch.ones(2), "a": torch.ones(1)}, {"running": torch.zeros(1)})
    parameters, buffers = store.read_final()
    assert parameters["w"].tolist() == [1.0, 1.0]
    assert list(buffers) == ["running"]


def _record(server_round: int) -> RoundRecord:
    generator = torch.Generator().manual_seed(server_round)
    return RoundRecord(
        server_round=server_round,
        global_parameters={"w": torch.randn(3, generator=generator), "a": torch.randn(1, generator=generator)},
        global_buffers={"running": torch.randn(1, generator=generator)},
        updates=tuple(
            ClientUpdate(
                server_round=server_round,
                client_id=client_id,
                num_examples=5 + client_id,
                algorithm=Algorithm.FEDAVG,
                tensors={"w": torch.randn(3, generator=generator), "a": torch.randn(1, generator=generator)},
                buffers={"running": torch.randn(1, generator=generator)},
                metrics={"train-loss": 0.25},
            )
            for client_id in (0, 2)
        ),
        failures=(ReplyFailure(server_round=server_round, client_id=1, reason="no reply before the deadline"),),
    )
