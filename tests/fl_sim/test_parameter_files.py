"""Parameter lists from elsewhere: matched by name or order, and one clear line for each thing that can be wrong."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.messages import ModelLayout
from fl_sim.parameter_files import fit, read_parameters


class Net(nn.Module):
    """Buffers stand between trainable tensors in its state dict, which an order that ignores this would exchange."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 3)


@pytest.fixture
def state():
    torch.manual_seed(3)
    network = Net()
    for buffer in network.buffers():
        buffer.add_(2)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


LAYOUT = ModelLayout.of(Net())


def agrees(fitted, state):
    assert list(fitted.parameters) == list(LAYOUT.parameters)
    assert list(fitted.buffers) == list(LAYOUT.buffers)
    found = {**fitted.parameters, **fitted.buffers}
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in state.items())


@pytest.mark.parametrize("kind", ["named", "numbered", "safetensors", "other_order", "float64"])
def test_the_same_state_however_it_was_written(kind, state, tmp_path):
    path = tmp_path / ("state.safetensors" if kind == "safetensors" else "state.npz")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "numbered":
        np.savez(path, *arrays.values())
    elif kind == "other_order":
        np.savez(path, **dict(reversed(arrays.items())))
    elif kind == "float64":  # an average of integers, and of floats in another width
        np.savez(path, **{name: array.astype(np.float64) for name, array in arrays.items()})
    else:
        np.savez(path, **arrays)
    fitted = fit(read_parameters(path), LAYOUT, where="state")
    agrees(fitted, state)
    assert fitted.is_by_order is (kind == "numbered")
    assert fitted.has_buffers


def test_a_list_without_buffers_is_the_trainable_tensors(state, tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, *(state[name].numpy() for name in LAYOUT.parameters))
    fitted = fit(read_parameters(path), LAYOUT, where="state")
    assert not fitted.has_buffers
    assert fitted.buffers == {}
    assert torch.equal(fitted.parameters["last.weight"], state["last.weight"])


def test_more_than_ten_arrays_are_sorted_by_number_and_not_by_letters(tmp_path):
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    path = tmp_path / "state.npz"
    np.savez(path, *(tensor.numpy() for tensor in network.state_dict().values()))
    tensors = read_parameters(path)
    fitted = fit(dict(sorted(tensors.items())), ModelLayout.of(network), where="state")
    assert all(torch.equal(fitted.parameters[name], tensor) for name, tensor in network.state_dict().items())


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "last.bias"), r"missing 'last.bias'; unexpected none"),
        (lambda state: {**state, "extra": torch.ones(1)}, r"missing none; unexpected 'extra'"),
        (
            lambda state: {**state, "last.weight": torch.ones(2, 2)},
            r"'last.weight': expected shape \(3, 3\), got \(2, 2\)",
        ),
        (lambda state: {**state, "last.bias": torch.full((3,), float("nan"))}, "'last.bias': expected finite numbers"),
        (lambda state: {**state, "last.bias": torch.ones(3, dtype=torch.int64)}, "expected torch.float32, got torch.i"),
        (lambda state: {"weights": torch.ones(3)}, "expected the model's names .*, or arr_0, arr_1"),
        (
            lambda state: {"arr_0": torch.ones(3), "arr_2": torch.ones(3)},
            "or arr_0, arr_1, … in its order; got 'arr_0'",
        ),
        (lambda state: {"arr_0": torch.ones(3)}, "expected 9 arrays, .* or 6 without buffers; got 1"),
        # Two tensors of another shape exchanged: an order that is not the model's.
        (
            lambda state: {f"arr_{n}": t for n, t in enumerate(reversed(state.values()))},
            r"'first.weight': expected shape \(3, 4\), got \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_says_so(change, message, state):
    with pytest.raises(ConfigError, match=message):
        fit(change(state), LAYOUT, where="state")


def test_a_gradient_has_no_buffers(state):
    with pytest.raises(ConfigError, match=r"unexpected 'norm.running_mean'"):
        fit(state, LAYOUT, where="gradient", only_trainable=True)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.savez(tmp_path / "trap.npz", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "single.npy", np.ones(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "text.npz", np.array(["a"]))
    for name, message in (
        ("trap.npz", "without pickled objects"),
        ("trap.pt", "expected .npz or .safetensors, got '.pt'"),
        ("trap.safetensors", "not a safetensors file"),
        ("single.npz", "got a single array"),
        ("text.npz", "'arr_0': expected numbers, got <U1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_parameters(tmp_path / name)
    with pytest.raises(MissingDataError, match="does not exist"):
        read_parameters(tmp_path / "absent.npz")
    assert not (tmp_path / "sprung").exists()
