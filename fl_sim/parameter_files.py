"""Parameter lists from elsewhere: arrays in a file, matched with a model's tensors by name or by order.

    .npz            named arrays; numpy.savez(path, *arrays) names them arr_0, arr_1, …
    .safetensors    named tensors

Nothing is unpickled.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_sim.errors import ConfigError, MissingDataError, RecordingError, brief
from fl_sim.files import read_tensors
from fl_sim.messages import ModelLayout
from fl_sim.npz_files import read_npz

_NUMBERED = re.compile(r"(?:arr_)?(\d{1,6})")
_NAMES_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Tensors in the model's order, shapes and types.

    Attributes:
        parameters: Trainable tensors.
        buffers: Persistent buffers.
        is_by_order: The file named no tensor of the model: they were matched by their order, and by shape.
        has_buffers: Whether the file held the model's buffers; if not, ``buffers`` is empty.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    is_by_order: bool
    has_buffers: bool

    def or_with_buffers(self, buffers: Mapping[str, Tensor]) -> "Fitted":
        """Return these tensors, with other buffers in place of those that the file did not hold."""
        return self if self.has_buffers else replace(self, buffers=dict(buffers))


def read_parameters(path: Path) -> dict[str, Tensor]:
    """Read named tensors, in the file's order, numbered ones by number.

    Args:
        path: ``.npz`` or ``.safetensors``.

    Raises:
        ConfigError: If it is neither, damaged, or holds anything but numbers.
        MissingDataError: If there is no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; paths in a manifest start at the manifest's folder")
    if path.suffix == ".safetensors":
        try:
            return read_tensors(path)
        except RecordingError as error:
            raise ConfigError(str(error)) from error
    if path.suffix != ".npz":
        raise ConfigError(
            f"{path}: expected .npz or .safetensors, got {path.suffix or 'no suffix'!r}; numpy.savez(path, *arrays) or "
            "safetensors.torch.save_file(model.state_dict(), path) write such files; pickled ones (.pt) are not read"
        )
    arrays = read_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"{path}: {name!r}: expected numbers, got {array.dtype}")
    return {name: torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) for name, array in arrays.items()}


def fit(tensors: Mapping[str, Tensor], layout: ModelLayout, *, where: str, only_trainable: bool = False) -> Fitted:
    """Match tensors with a model's.

    Names that are the model's count; where names are numbers (``arr_0``, or ``0`` as Flower numbers a list of arrays),
    the order is that of ``model.state_dict()``, or of ``model.parameters()`` where there are just as many tensors.

    Args:
        tensors: As read or received.
        layout: The model's tensors.
        where: What is matched, for messages.
        only_trainable: For a gradient: there is none of a buffer.

    Raises:
        ConfigError: If names, number, shapes, kinds or values do not fit; the message says which.
    """
    parameters, buffers = dict(layout.parameters), {} if only_trainable else dict(layout.buffers)
    both = {**parameters, **buffers}
    state = {name: both[name] for name in layout.state_names if name in both}
    is_by_order = not set(tensors) & set(state)
    if is_by_order:
        tensors = _named_by_order(tensors, parameters, state, where)
    expected = parameters if set(tensors) == set(parameters) else state
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        raise ConfigError(
            f"{where}: the names differ from the model's: missing {_some(missing)}; unexpected {_some(unexpected)}; "
            "name the model whose state dict this is"
        )
    fitted = {name: _checked(tensors[name], like, f"{where}: {name!r}") for name, like in expected.items()}
    return Fitted(
        parameters={name: fitted[name] for name in parameters},
        buffers={name: fitted[name] for name in buffers if name in fitted},
        is_by_order=is_by_order,
        has_buffers=only_trainable or all(name in fitted for name in layout.buffers),
    )


def _named_by_order(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    numbers = {name: int(match[1]) for name in tensors if (match := _NUMBERED.fullmatch(name))}
    if len(numbers) != len(tensors) or sorted(numbers.values()) != list(range(len(tensors))):
        raise ConfigError(
            f"{where}: expected the model's names ({_some(list(state))}), or arr_0, arr_1, … in its order; "
            f"got {_some(list(tensors))}"
        )
    names = list(state) if len(tensors) == len(state) else list(parameters)
    if len(tensors) != len(names):
        raise ConfigError(
            f"{where}: expected {len(state)} arrays, one for each tensor of the model's state dict"
            f"{f', or {len(parameters)} without buffers' if len(parameters) != len(state) else ''}; got {len(tensors)}"
        )
    return dict(zip(names, (tensors[name] for name in sorted(numbers, key=numbers.__getitem__)), strict=True))


def _checked(tensor: Tensor, like: Tensor, where: str) -> Tensor:
    if tensor.shape != like.shape:
        raise ConfigError(
            f"{where}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}; see that the model, its "
            "arguments, and the order of the arrays are those of training"
        )
    if like.is_floating_point() and not tensor.is_floating_point():
        raise ConfigError(f"{where}: expected {like.dtype}, got {tensor.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"{where}: expected finite numbers, got NaN or infinity")
    # Averages turn integer buffers into floats, and other tools compute in other widths.
    return tensor.to(like.dtype)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(brief(repr(name)) for name in names[:_NAMES_SHOWN]) + rest
