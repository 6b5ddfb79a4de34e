"""The last fully connected layer: its update tells which classes a client holds.

For softmax and cross-entropy, with p the mean softmax, lambda the label counts and o the inputs of the layer:

    bias gradient     p_k - lambda_k / N
    weight gradient   (p_k - lambda_k / N) o     summed over inputs, for o alike for all images
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.layer_inputs import inputs_of_layer, tensor_name
from attacker.observation import Observation
from fl_sim.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLayer:
    """Names of the last fully connected layer and of its tensors; ``bias`` is ``None`` if it has none."""

    module: str
    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What dummy images look like to the last layer.

    Attributes:
        softmax: (K,), the mean softmax p.
        feature_sum: (), the mean of the sum of the layer's inputs, O.
    """

    softmax: Tensor
    feature_sum: Tensor


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


def statistics_of(
    observation: Observation,
    layer: LastLayer,
    parameters: Parameters,
    buffers: Mapping[str, Tensor],
    images: Tensor,
) -> Statistics:
    """Run dummy images through the model.

    Args:
        observation: Gives the model.
        layer: Its last layer.
        parameters: The weights to take.
        buffers: The buffers to take.
        images: (D, C, H, W), dummy images in pixel units.
    """
    with torch.no_grad():
        features, logits = inputs_of_layer(observation.model, layer.module, parameters, buffers, images)
    return Statistics(softmax=logits.softmax(dim=1).mean(dim=0), feature_sum=features.sum(dim=1).mean())
