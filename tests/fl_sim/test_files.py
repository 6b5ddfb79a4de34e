"""Files are whole or absent, and refused by name and reason where they are not what they claim."""

import json

import pytest
import torch

from fl_sim import files
from fl_sim.errors import RecordingError, StorageError


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor(1.5, dtype=torch.float64)}
    sha256 = files.write_tensors(tmp_path / "x" / "t.safetensors", tensors)
    back = files.read_tensors(tmp_path / "x" / "t.safetensors", sha256=sha256)
    assert all(torch.equal(tensors[name], back[name]) and tensors[name].dtype == back[name].dtype for name in tensors)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(files.Path, "replace", _raise_disk_full)
    with pytest.raises(StorageError, match=r"a\.json: cannot be written .*disk full"):
        files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\x80\x05.", b"{", b"[1]", b"\xff\xff", b"[" * 100_000])
def test_bad_json_is_refused(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"bad\.json"):
        files.read_json(path)


@pytest.mark.parametrize("content", [b"", b"not a tensor file", b"\xff" * 64, b"\x80\x04cos\nsystem\n."])
def test_bad_tensor_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"bad\.safetensors.*not a safetensors file"):
        files.read_tensors(path)


def test_a_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    sha256 = files.write_tensors(path, {"a": torch.zeros(8)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="changed after recording"):
        files.read_tensors(path, sha256=sha256)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordingError, match=r"gone\.json: the file is missing"):
        files.read_json(tmp_path / "gone.json")


def _raise_disk_full(*arguments):
    raise OSError("disk full")
