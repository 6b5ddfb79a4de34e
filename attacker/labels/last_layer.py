"""The last fully connected layer: its update tells which classes a client holds.

For softmax and cross-entropy, with p the mean softmax, lambda the label counts and o the inputs of the layer:

    bias gradient     p_k - lambda_k / N
    weight gradient   (p_k - lambda_k / N) o     summed over inputs, for o alike for all images
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.layer_inputs import inputs_of_layer, tensor_name
from attacker.observation import Observation
from attacker.placement import device_of, dtype_of
from fl_sim.parameters import Parameters

_CHUNK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLayer:
    """Names of the last fully connected layer and of its tensors; ``bias`` is ``None`` if it has none."""

    module: str
    weight: str
    bias: str | None


def find_last_layer(model: nn.Module, num_classes: int) -> LastLayer:
    """Find the layer that gives the logits: the last module of the model that has tensors of its own.

    Args:
        model: Any module.
        num_classes: K, the outputs that the layer must have.

    Raises:
        DoesNotApplyError: If it is not a `torch.nn.Linear` with K outputs.
    """
    owners = [(name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(False))]
    if not owners:
        raise DoesNotApplyError(f"label recovery needs a trainable model; {type(model).__name__} has no parameters")
    name, last = owners[-1]
    if not isinstance(last, nn.Linear) or last.out_features != num_classes:
        found = f"Linear with {last.out_features} outputs" if isinstance(last, nn.Linear) else type(last).__name__
        raise DoesNotApplyError(
            f"label recovery needs a last layer torch.nn.Linear with {num_classes} outputs; {name or 'the model'!r} is "
            f"{found}; use a threat model that grants label_counts"
        )
    return LastLayer(
        module=name,
        weight=tensor_name(name, "weight"),
        bias=None if last.bias is None else tensor_name(name, "bias"),  # pyright: ignore[reportUnnecessaryComparison]
    )


def features_and_logits(
    observation: Observation, layer: LastLayer, parameters: Parameters, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Run dummy images through the model, without a graph.

    Args:
        observation: Gives the model and its buffers.
        layer: Its last layer.
        parameters: The weights to take.
        images: (D, C, H, W), dummy images in pixel units.

    Returns:
        The inputs of the last layer (D, F) and the logits (D, K).
    """
    images = images.to(device_of(observation), dtype_of(observation))
    with torch.no_grad():
        parts = [
            inputs_of_layer(observation.model, layer.module, parameters, observation.global_buffers, chunk)
            for chunk in images.split(_CHUNK)
        ]
    return torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts])
