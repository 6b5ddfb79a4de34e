"""The disk fills up while a federation is recorded: the file is named, what was written stays, and it goes on."""

import errno
import io
import os
import re
import resource
import tempfile
from pathlib import Path

import pytest
import torch

from fl_sim.errors import FederationError, StorageError
from fl_sim.files import write_bytes
from fl_sim.parameters import flatten
from fl_sim.resumption import prepare_resumption
from fl_sim.run_store import RunState, RunStatus, RunStore, create_run
from fl_sim.runtime import run_federation

ROUNDS = "federation.num_rounds=3"


@pytest.fixture
def full_disk(monkeypatch):
    """A function after which nothing can be written any more from the moment when a certain file is."""

    def fill(at: str) -> None:
        fsync, mkstemp = os.fsync, tempfile.mkstemp
        full = []

        def filling_mkstemp(*, dir: Path, prefix: str):
            if re.search(at, f"{Path(dir).name}/{prefix[1:]}"):
                full.append(True)
            return mkstemp(dir=dir, prefix=prefix)

        def failing_fsync(descriptor: int) -> None:
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr("tempfile.mkstemp", filling_mkstemp)
        monkeypatch.setattr(os, "fsync", failing_fsync)

    return fill


@pytest.fixture(scope="module")
def whole(run_tiny) -> RunStore:
    return run_tiny(ROUNDS)


@pytest.mark.parametrize(
    ("at", "num_whole"),
    [
        (r"recording/manifest\.json", 0),
        (r"0001/client-00001", 0),
        (r"0003/global", 2),
        (r"0003/client-00002", 2),
        (r"0003/round\.json", 2),
        (r"checkpoint/0003", 3),
        (r"/evaluations\.json", 0),
        (r"recording/final", 3),
    ],
)
def test_a_full_disk_names_the_file_and_after_it_the_run_goes_on(
    whole, run_tiny, tiny, tmp_path, full_disk, monkeypatch, at, num_whole
):
    run = create_run(tiny(ROUNDS), tmp_path)
    full_disk(at)
    run_tiny(store=run, fails=r"cannot be written \(No space left on device\)")
    status = run.status()
    assert status.state is RunState.FAILED
    assert re.search(at, status.message)
    assert "free some space" in status.message
    assert "fl-sim run --resume RUN" in status.message
    assert not [path for path in run.folder.rglob(".*") if path.is_file()]
    assert run.recording.rounds() == tuple(range(1, num_whole + 1))
    for server_round in run.recording.rounds():
        mine, other = run.recording.read_round(server_round), whole.recording.read_round(server_round)
        assert torch.equal(flatten(mine.updates[2].tensors), flatten(other.updates[2].tensors))
    monkeypatch.undo()
    prepare_resumption(run, engine="inprocess")
    run_tiny(store=run)
    assert torch.equal(flatten(run.recording.read_final()[0]), flatten(whole.recording.read_final()[0]))


def test_an_event_that_cannot_be_written_ends_the_run_too(run_tiny, tiny, tmp_path, monkeypatch):
    run = create_run(tiny(ROUNDS), tmp_path)
    real = Path.open

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_or_fail(self, mode="r", *arguments, **options):
        if self == run.events_path and "a" in mode and len(run.recording.rounds()) == 2:
            real(self, "a").write('{"kind": "round_')
            return Full()
        return real(self, mode, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_or_fail)
        run_tiny(store=run, fails=r"events\.jsonl: cannot be written \(No space left on device\)")
    assert run.status().state is RunState.FAILED
    assert run.recording.rounds() == (1, 2)
    prepare_resumption(run, engine="inprocess")
    run_tiny(store=run)
    assert run.recording.rounds() == (1, 2, 3)


def test_the_status_is_told_where_no_new_file_finds_room(tiny, tmp_path, full_disk):
    run = create_run(tiny(), tmp_path)
    full_disk("status")
    run.write_status(RunStatus(state=RunState.FAILED, message="the disk is full"))
    assert run.status() == RunStatus(state=RunState.FAILED, message="the disk is full")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_every_reason_is_said_with_the_file_and_a_remedy(tmp_path, monkeypatch, number):
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=rf"some\.bin: cannot be written \({os.strerror(number)}\)") as caught:
        write_bytes(tmp_path / "some.bin", b"x")
    assert ("free some space" in str(caught.value)) == (number == errno.ENOSPC)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_limit_of_the_system_in_a_real_process(tiny, run_tiny, tmp_path):
    # No file may grow beyond a size that holds the model, and the events of some rounds.
    many = ["federation.num_rounds=30", "model.options={hidden=[4]}", "data.options={size=8}"]
    run = create_run(tiny(*many), tmp_path)
    resource_before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource_before[1]))
        with pytest.raises(FederationError, match=r"StorageError: .*events\.jsonl: cannot be written \(File too"):
            list(run_federation(run, engine="inprocess", client_app="clients.client_app:build_client_app"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, resource_before)
    assert run.status().state is RunState.FAILED
    assert 2 < len(run.recording.rounds()) < 30
    assert all(len(run.recording.read_round(server_round).updates) == 3 for server_round in run.recording.rounds())
    prepare_resumption(run, engine="inprocess")
    list(run_federation(run, engine="inprocess", client_app="clients.client_app:build_client_app"))
    assert torch.equal(flatten(run.recording.read_final()[0]), flatten(run_tiny(*many).recording.read_final()[0]))
