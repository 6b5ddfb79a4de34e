"""Where an attack computes, on the device on which the observed update lies, and in which precision."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attacker.batch_norm import LayerStatistics, Statistics
from attacker.observation import Observation


def on_device(observation: Observation, device: torch.device | str) -> Observation:
    """Return the observation with its model and all tensors on a device; the original stays as it is.

    The model is a copy, in training mode, as it is at the clients.

    Args:
        observation: What the attack sees.
        device: For instance ``"cuda"``.
    """
    knowledge = observation.knowledge
    batch_counts = knowledge.batch_label_counts
    buffers, counts, statistics = knowledge.client_buffers, knowledge.label_counts, knowledge.batch_statistics
    return replace(
        observation,
        model=copy.deepcopy(observation.model).to(device).train(),
        global_parameters=_moved(observation.global_parameters, device),
        global_buffers=_moved(observation.global_buffers, device),
        delta=_moved(observation.delta, device),
        knowledge=replace(
            knowledge,
            client_buffers=None if buffers is None else _moved(buffers, device),
            label_counts=None if counts is None else counts.to(device),
            batch_label_counts=None if batch_counts is None else batch_counts.to(device),
            batch_statistics=None if statistics is None else _moved_statistics(statistics, device),
        ),
    )


def allow_tf32(*, is_allowed: bool) -> None:
    """Say, for this process, whether a GPU may round what it multiplies in single precision to 10 bits.

    torch lets convolutions do so unless told otherwise. `FeatureSpan` bears it, and even 7 bits for two decibels; of
    the 88 dB that `DeepLeakage` reaches for one picture 49 remain at best (benchmarks/low_precision.py).
    """
    torch.backends.cudnn.allow_tf32 = is_allowed
    torch.backends.cuda.matmul.allow_tf32 = is_allowed


def in_place_of_update(observation: Observation) -> Observation:
    """Return the observation with everything on the device of the update; attacks start with this."""
    return on_device(observation, device_of(observation))


def device_of(observation: Observation) -> torch.device:
    """Return the device of the update."""
    return next(iter(observation.delta.values())).device


def dtype_of(observation: Observation) -> torch.dtype:
    """Return the floating-point type of the update."""
    return next(iter(observation.delta.values())).dtype


def _moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _moved_statistics(statistics: Statistics, device: torch.device | str) -> dict[str, LayerStatistics]:
    return {
        name: LayerStatistics(layer.mean.to(device), layer.variance.to(device)) for name, layer in statistics.items()
    }
