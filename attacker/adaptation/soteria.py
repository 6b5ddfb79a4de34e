"""Soteria changes the weight gradient of one layer and no other: an attacker who knows it looks at the others."""

import torch
from torch import nn

from attacker.adaptation.link import Link, Part, not_followed


def soteria(link: Link) -> Part:
    """Return the part that leaves out the defended layer's weight.

    In FedAvg the client's own later steps start from weights that this layer moved less; that is not followed.

    References:
        Balunović et al., Bayesian Framework for Gradient Leakage, ICLR 2022, Sec. 5 (muting the defended layer).
    """
    if link.option("pruned_percent") == 0:
        return Part()
    layer = defended_layer(link.client.model, link.defense.options.get("layer"))
    if layer is None:
        return not_followed(link, "the model has no linear layer that it could have acted on")
    name = f"{layer}.weight" if layer else "weight"
    return Part(
        follow=lambda simulated: {
            other: torch.zeros_like(tensor) if other == name else tensor for other, tensor in simulated.items()
        },
        muted=(name,),
        done=f"soteria ({name} left out)",
    )


def defended_layer(model: nn.Module, chosen: object) -> str | None:
    """Return the name of the layer that Soteria acts on; ``None`` if there is none.

    Args:
        model: The architecture.
        chosen: The option ``layer``: its name, or ``None`` for the first linear layer behind another layer with
            weights, and the only one of logistic regression.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if chosen is not None:
        return str(chosen) if chosen in linear else None
    with_weights = [
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    behind = [name for name in with_weights[1:] if name in linear]
    return next(iter(behind or linear), None)
