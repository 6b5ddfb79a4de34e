"""A network as its owner wrote it: a class or a function that knows nothing of this project.

It is not in the table MODELS, because it cannot be built without being told which network. A recording names it by
reference, ``"fl_sim.models.torch_module:torch_module"``. `model_part` decides which of the two a name is.
"""

from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from fl_sim.errors import ConfigError
from fl_sim.models.initialisation import seeded_construction
from fl_sim.records import DatasetSpec
from fl_sim.tables import load_reference

REFERENCE = f"{__name__}:torch_module"


def torch_module(
    *, dataset: DatasetSpec, generator: torch.Generator, factory: str, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """Build a network by reference, and normalise what it is fed.

    Tensors keep the names that the network's state dict has. The normalisation is a hook before the network and no
    module: it must not become one more layer of an ``nn.Sequential``.

    Args:
        dataset: Gives mean and standard deviation; (0, 1) for a network that is fed plain pixels.
        generator: The source of the weights.
        factory: ``"package.module:Net"``: a class of ``nn.Module``, or a function that is annotated to return one.
        arguments: What it is called with, by name.

    Returns:
        Pixels (N, C, H, W) in [0, 1] to whatever the network returns, which must be logits (N, K).

    Raises:
        ConfigError: If the reference is no network, or cannot be called with the arguments.
    """
    build = load_reference(factory, kind="network")
    if not makes_a_network(build):
        raise ConfigError(
            f"{factory} is no network: expected a class of torch.nn.Module or a function that is annotated to return "
            f"one, got {type(build).__name__}"
        )
    with seeded_construction(generator):
        try:
            network: nn.Module = build(**(arguments or {}))
        except TypeError as error:
            raise ConfigError(f"{factory} cannot be called with {arguments or 'no arguments'}: {error}") from error
    if any(value != 0 for value in dataset.mean) or any(value != 1 for value in dataset.std):
        network.register_forward_pre_hook(_normalise(dataset.mean, dataset.std))
    return network


def makes_a_network(part: Any) -> bool:
    """Say, without calling it, whether something makes a network: its class, or a function annotated to return one."""
    if isinstance(part, type):
        return issubclass(part, nn.Module)
    try:
        found = get_type_hints(part).get("return")
    except (NameError, TypeError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, nn.Module)


def model_part(models: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and options under which a recording names a model.

    Args:
        models: The table MODELS.
        name: A name of it, a model factory of this project by reference, or a network by reference.
        options: Its options, or the network's arguments.

    Raises:
        ConfigError: If it is none of them.
    """
    if ":" in name and makes_a_network(load_reference(name, kind="network")):
        part = load_reference(name, kind="network")
        if isinstance(part, type) or not _is_factory(models, name):
            return REFERENCE, {"factory": name, **({"arguments": dict(options)} if options else {})}
    _ = models[name]  # an unknown name, or a reference to something else, is an error here
    return name, dict(options)


def _is_factory(models: Mapping[str, Any], name: str) -> bool:
    try:
        _ = models[name]
    except ConfigError:
        return False
    return True


def _normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    def hook(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        # Made anew where it is needed: the network moves between devices and types, a hook does not move with it.
        means, stds = (
            torch.tensor(values, dtype=images.dtype, device=images.device).reshape(-1, 1, 1) for values in (mean, std)
        )
        return ((images - means) / stds, *rest)

    return hook
