"""A run folder from a stranger: thousands of damaged and forged files are read as what they are, or refused by name.

Nothing else may be raised, nothing is executed, nothing large is allocated, and no path leaves the run folder.
"""

import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from attacker.attack_store import AttackStore, list_attack_stores
from attacker.attack_worker import observe_update, run_task
from attacker.campaign import plan_campaign
from attacker.results import read_results, result_row, score_results
from attacker.truth import read_truth
from fl_sim.central_accounting import central_guarantee
from fl_sim.checkpoint import ServerState
from fl_sim.cli import app
from fl_sim.cli.experiment_check import check_experiment
from fl_sim.config import AttackConfig
from fl_sim.errors import ConfigError, FlSimError, RecordingError
from fl_sim.events import read_events
from fl_sim.options import build
from fl_sim.resumption import prepare_resumption
from fl_sim.run_store import RunState, RunStatus, RunStore, open_run
from fl_sim.server_privacy import CentralPrivacy
from fl_sim.tables import Table

MUTATIONS_OF_A_FILE = 200
MOST_GROWTH_KIB = 300 * 1024
SMALL = ("model.options={hidden=[3]}", "data.options={size=8}", "data.num_clients=2", "federation.num_rounds=1")


@pytest.fixture(scope="module")
def original(run_tiny) -> RunStore:
    """A run with a file of every kind, secure aggregation apart."""
    run = run_tiny(*SMALL)
    plan = plan_campaign(run, AttackConfig(name="fedavg_leakage", options={"steps": 1}, clients=(0,)))
    AttackStore(plan.tasks[0].results).write_setting(plan.setting)
    run_task(plan.tasks[0], lambda progress: None)
    assert score_results(run, read_truth(run.folder), threshold_db=20.0) == 1
    parameters, buffers = run.recording.read_final()
    run.checkpoint.write(ServerState(server_round=1, has_trained=True), {**parameters, **buffers})
    run.recording.write_guarantee(central_guarantee(CentralPrivacy(clip_norm=1.0, noise_multiplier=0.0), 1))
    run.write_engine("inprocess", 1)
    return run


@pytest.fixture(scope="module")
def secure_original(run_tiny) -> RunStore:
    return run_tiny("federation.secure_aggregation={}", *SMALL)


@pytest.fixture
def run(original, tmp_path) -> RunStore:
    shutil.copytree(original.folder, tmp_path / "run")
    return RunStore(tmp_path / "run")


@pytest.fixture
def secure_run(secure_original, tmp_path) -> RunStore:
    shutil.copytree(secure_original.folder, tmp_path / "secure")
    return RunStore(tmp_path / "secure")


def _read_recording(run: RunStore) -> None:
    recording = run.recording
    for server_round in recording.rounds():
        recording.kept_clients(server_round)
        recording.read_failures(server_round)
        recording.read_metrics(server_round)
        aggregated = recording.aggregated_clients(server_round)
        record = recording.read_round(server_round)
        for reply in record.masked:
            recording.read_masked_vector(server_round, reply.client_id)
        for update in record.updates[:1]:
            observe_update(recording.folder, server_round, (update.client_id,), "honest_but_curious")
        if aggregated:
            observe_update(recording.folder, server_round, aggregated, "honest_but_curious")


def _read_origin(run: RunStore) -> None:
    run.write_status(RunStatus(state=RunState.FAILED))
    prepare_resumption(open_run(run.folder), engine="inprocess")


def _read_checkpoint(run: RunStore) -> None:
    parameters, buffers = RunStore(run.folder).recording.read_final()
    run.checkpoint.read({**parameters, **buffers})


def _read_truth(run: RunStore) -> None:
    read_truth(run.folder).private_batch(0)


def _read_results(run: RunStore) -> None:
    for result in read_results(run):
        result_row(result)
    for store in list_attack_stores(run.attacks):
        for key in store.finished():
            store.has_result(key)


READERS: dict[str, Callable[[RunStore], object]] = {
    "run.json": _read_origin,
    "experiment.toml": lambda run: run.experiment(),
    "status.json": lambda run: run.status(),
    "events.jsonl": lambda run: read_events(run.events_path),
    "evaluations.json": lambda run: run.evaluations(),
    "engine.json": lambda run: run.engine(),
    "checkpoint/checkpoint.json": _read_checkpoint,
    "checkpoint/0001.safetensors": _read_checkpoint,
    "recording/manifest.json": _read_recording,
    "recording/central_privacy.json": lambda run: run.recording.read_guarantee(),
    "recording/final.safetensors": lambda run: run.recording.read_final(),
    "recording/rounds/0001/round.json": _read_recording,
    "recording/rounds/0001/global.safetensors": _read_recording,
    "recording/rounds/0001/client-00000.safetensors": _read_recording,
    "truth/truth.json": _read_truth,
    "attacks/*/setting.json": _read_results,
    "attacks/*/*/outcome.json": _read_results,
    "attacks/*/*/reconstruction.safetensors": _read_results,
    "scores/*/*.json": _read_results,
}
SECURE_FILES = ("round.json", "masked-00001.safetensors", "aggregate.safetensors")

# What a value is replaced by.
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, 0.5, "", "x", "inprocess", "../../../etc/passwd",
    "/etc/passwd", "os:system", "subprocess:Popen", "torch:load", ":", "a:", ":b", ".:x", "..a:b", "\x00", "é" * 300,
    "x" * 100_000, [], [0], [[]], {}, {"a": 1}, [None], ["os:system"], {"__class__": "x"}, [10**9], [10**9] * 3,
]  # fmt: skip


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """Return JSON with one value, key or entry changed."""
    data = json.loads(content)
    places = list(_places(data))
    container, key = draw.choice(places)
    match draw.randrange(6):
        case 0 | 1 | 2:
            container[key] = draw.choice(ODD_VALUES)
        case 3 if isinstance(container, dict):
            del container[key]
        case 4 if isinstance(container, dict):
            container[draw.choice(["x", "__init__", "", "path", "../x"])] = container.pop(key)
        case _:
            if isinstance(container, list):
                container.extend([container[key]] * draw.choice([1, 50]))
            else:
                container[draw.choice(["extra", "slots", "sha256"])] = draw.choice(ODD_VALUES)
    text = json.dumps(data)
    match draw.randrange(12):
        case 0:
            text = re.sub(r"\d+", draw.choice(["NaN", "Infinity", "-Infinity", "9" * 5000, "1e999"]), text, count=1)
        case 1:
            text = text.replace(":", ":" + "[" * 5000, 1)
        case 2:
            text = re.sub(r"(\"[a-z_0-9]+\":)", r"\1 1, \1", text, count=1)  # the same name twice
    return text.encode("utf-8", "surrogatepass")


def _places(data: Any):
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(entries):
        yield data, key
        yield from _places(value)


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return bytes flipped, cut off, repeated, swapped, overwritten or with garbage in them."""
    data = bytearray(content)
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(8):
        case 0:
            for _ in range(draw.choice([1, 1, 3, 20])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del data[draw.randrange(len(data)) :]
        case 2:
            del data[start:end]
        case 3:
            data[start:end] = draw.randbytes(end - start)
        case 4:
            data = data[end:] + data[start:end] + data[:start]
        case 5:
            data[start:start] = draw.choice(
                [draw.randbytes(16), b"\x80\x04\x95cos\nsystem\n", b"\x00" * 64, b"PK\x03\x04"]
            )
        case 6:
            data[start:end] = bytes(end - start)
        case _:
            data += draw.choice([b"\x00", b"x" * 4096, bytes(data)])
    return bytes(data)


def mutated_tensors(content: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file whose header tells another story."""
    if draw.randrange(4) == 0:
        return struct.pack("<Q", draw.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])) + content[8:]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match draw.randrange(7):
        case 0:
            entry["shape"] = draw.choice([[2**40], [2**31, 2**31], [-1], [0], [2**63], [], "x", [1] * 70, [1.5], None])
        case 1:
            entry["dtype"] = draw.choice(["F64", "I8", "BF16", "F8_E4M3", "C64", "U64", "O", "pickle", "", None, 3])
        case 2:
            entry["data_offsets"] = draw.choice([[0, 2**40], [2**40, 0], [-4, 4], [0], "x", [0, 0], None, [1, 5]])
        case 3:
            header[draw.choice(["../../x", "x" * 5000, "", "parameters/", "\x00"])] = header.pop(name)
        case 4:
            header["__metadata__"] = draw.choice([{"a": "b" * 10_000}, "x", [1], {"a": 1}, None])
        case 5:
            other = draw.choice([other for other in header if other != "__metadata__"])
            header[name], header[other] = header[other], header[name]
        case _:
            del header[name]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _mutations(path: Path, content: bytes, draw: random.Random):
    for number in range(MUTATIONS_OF_A_FILE):
        changed = mutated_bytes(content, draw)
        if number % 4 and path.suffix == ".json":
            changed = mutated_json(content, draw)
        if number % 4 and path.suffix == ".safetensors":
            changed = mutated_tensors(content, draw)
        yield changed


def _holders(run: RunStore, path: Path) -> dict[Path, bytes]:
    """Return the files that hold a file's checksum, which a forger would put right, with the rest of their text."""
    old = hashlib.sha256(path.read_bytes()).hexdigest().encode()
    files = [*run.folder.rglob("round.json"), *run.folder.rglob("outcome.json"), *run.folder.rglob("checkpoint.json")]
    return {file: content for file in files if file != path and old in (content := file.read_bytes())}


def fuzz(run: RunStore, pattern: str, read: Callable[[RunStore], object], seed: str) -> tuple[int, int]:
    """Read a file in many damaged forms; return how many were refused, and how many read."""
    draw = random.Random(seed)
    (path,) = list(run.folder.glob(pattern))[:1]
    pristine = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    read(run)
    for file, content in pristine.items():
        file.write_bytes(content)
    holders, old = _holders(run, path), hashlib.sha256(pristine[path]).hexdigest().encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = accepted = 0
    messages: list[str] = []
    for content in _mutations(path, pristine[path], draw):
        path.write_bytes(content)
        for holder, text in holders.items():
            holder.write_bytes(text.replace(old, hashlib.sha256(content).hexdigest().encode()))
        try:
            read(run)
            accepted += 1
        except FlSimError as error:
            refused += 1
            messages.append(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
            pytest.fail(f"{path.name}: {error!r:.300} from {content[:600]!r}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KIB
    assert [message for message in messages if len(message) > 1500 or not message.isprintable()] == []
    return refused, accepted


@pytest.mark.slow
@pytest.mark.parametrize("pattern", READERS)
def test_a_mutated_file_is_refused_or_read_and_nothing_else(run, pattern):
    refused, _ = fuzz(run, pattern, READERS[pattern], pattern)
    assert refused > MUTATIONS_OF_A_FILE / 20


@pytest.mark.slow
@pytest.mark.parametrize("name", SECURE_FILES)
def test_under_secure_aggregation_too(secure_run, name):
    refused, _ = fuzz(secure_run, f"recording/rounds/0001/{name}", _read_recording, name)
    assert refused > MUTATIONS_OF_A_FILE / 20


class _Payload:
    """Makes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def _dangerous(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    pickled, marker = folder / "pickled", folder / "executed"
    pickled.write_bytes(pickle.dumps(_Payload(marker)))
    return [
        ("os:system", {"command": f"touch {marker}"}),
        ("subprocess:Popen", {"args": ["touch", str(marker)]}),
        ("subprocess:run", {"args": ["touch", str(marker)]}),
        ("torch:load", {"f": str(pickled), "weights_only": False}),
        ("builtins:exec", {}),
        ("pathlib:Path.touch", {}),
    ]


def _in_truth(run: RunStore, name: str, options: dict[str, Any]) -> None:
    path = run.folder / "truth" / "truth.json"
    path.write_text(json.dumps({"seed": 0, "data": {"dataset": name, "options": options}}))
    read_truth(run.folder)


def _in_manifest(run: RunStore, name: str, options: dict[str, Any]) -> None:
    path = run.recording.folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"model": {"name": name, "options": options}}
    path.write_text(json.dumps(manifest))
    observe_update(run.recording.folder, 1, (0,), "honest_but_curious")


def _in_section(section: str) -> Callable[[RunStore, str, dict[str, Any]], None]:
    def put(run: RunStore, name: str, options: dict[str, Any]) -> None:
        path = run.folder / "experiment.toml"
        data = tomllib.loads(path.read_text())
        match section:
            case "defenses":
                data["defenses"] = [{"name": name, "options": options}]
            case "data":
                data["data"] |= {"dataset": name, "options": options}
            case _:
                data[section] = {"name": name, "options": options}
        path.write_text(tomli_w.dumps(data))
        check_experiment(run.experiment())

    return put


def _as_threat_model(run: RunStore, name: str, options: dict[str, Any]) -> None:
    (path,) = run.attacks.glob("*/setting.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threat_model": name}))
    read_results(run)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(
    "put",
    [
        _in_truth,
        _in_manifest,
        _in_section("model"),
        _in_section("data"),
        _in_section("defenses"),
        _in_section("attack"),
        _as_threat_model,
    ],
    ids=["truth", "manifest", "model", "data", "defenses", "attack", "threat-model"],
)
def test_a_file_that_names_something_dangerous_does_not_run_it(run, tmp_path, put, number):
    name, options = _dangerous(tmp_path)[number]
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}'? is no |has no '"):
        put(run, name, options)
    assert not (tmp_path / "executed").exists()


def test_the_marker_would_be_there(tmp_path):
    # The very calls that the names above would have led to.
    name, options = _dangerous(tmp_path)[0]
    build(Table("command", {})[name], options, where="options")
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["recording", "recording/rounds/0001", "recording/rounds/0001/round.json", "attacks", "scores", "report"]
)
def test_a_link_that_leaves_the_run_is_refused_for_reading_and_for_writing(run, tmp_path, name):
    path, outside = run.folder / name, tmp_path / "outside"
    path.rename(outside) if path.exists() else outside.mkdir()
    path.symlink_to(outside)
    before = sorted(outside.rglob("*")) if outside.is_dir() else outside.read_bytes()
    with pytest.raises(RecordingError, match=rf"{path}: a link that leads out of the run folder"):
        open_run(run.folder)
    done = CliRunner().invoke(app, ["report", str(run.folder)])
    assert done.exit_code == 1
    assert "leads out of the run folder" in done.stderr
    assert (sorted(outside.rglob("*")) if outside.is_dir() else outside.read_bytes()) == before


def test_a_link_inside_is_followed_and_a_circle_or_a_pipe_is_refused(run):
    (run.folder / "same").symlink_to("recording")
    open_run(run.folder)
    (run.folder / "circle").symlink_to("circle")
    with pytest.raises(RecordingError, match="circle: a link that leads out"):
        open_run(run.folder)
    (run.folder / "circle").unlink()
    path = run.recording.folder / "rounds" / "0001" / "round.json"
    path.unlink()
    os.mkfifo(path)  # whoever opened it to read would wait for ever
    with pytest.raises(RecordingError, match="expected a regular file"):
        run.recording.read_failures(1)
    with pytest.raises(RecordingError, match=r"round\.json: expected a file or a folder, got a device, a pipe"):
        open_run(run.folder)


def test_a_file_that_only_claims_to_be_large_costs_nothing(run):
    path = run.recording.folder / "manifest.json"
    with path.open("r+b") as stream:
        stream.truncate(2**40)  # sparse: a terabyte that takes no room
    with pytest.raises(RecordingError, match=r"manifest\.json: expected at most \d+ bytes, got 1099511627776"):
        run.recording.read_manifest()


@pytest.mark.parametrize("options", [{"hidden": [2**40]}, {"hidden": [200_000, 200_000]}])
def test_a_model_larger_than_what_was_recorded_is_not_built(run, options):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RecordingError, match="model 'mlp' has other tensors than were recorded"):
        _in_manifest(run, "mlp", options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KIB


def test_names_of_tensors_and_rounds_are_no_paths(run):
    for name in ("../evil", "-1", "0000", "00001", "99999999999", "１２３４"):
        folder = run.recording.folder / "rounds" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "round.json").write_text("{}")
    assert run.recording.rounds() == (1,)
    assert run.recording.drop_rounds_after(0) == (1,)
    assert (run.recording.folder / "evil").is_dir()
