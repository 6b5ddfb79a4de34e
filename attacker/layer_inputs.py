"""What a fully connected layer of a model is fed with: the features that several attacks reason about."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from attacker.attack import DoesNotApplyError
from fl_sim.parameters import Parameters


def first_linear(model: nn.Module) -> str:
    """Return the name of the first fully connected layer, in the model's order.

    Raises:
        DoesNotApplyError: If the model has none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            return name
    raise DoesNotApplyError(f"the attack needs a model with a torch.nn.Linear layer; {type(model).__name__} has none")


def tensor_name(layer: str, tensor: str) -> str:
    """Return the parameter name of a layer's tensor; the empty layer name is the model itself."""
    return f"{layer}.{tensor}" if layer else tensor


def inputs_of_layer(
    model: nn.Module, layer: str, parameters: Parameters, buffers: Mapping[str, Tensor], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the model and return what one of its layers was fed with, and the logits.

    Differentiable with respect to images and parameters. Nothing given is changed.

    Args:
        model: Pixels to logits; called functionally, in the mode it is in.
        layer: A module name of the model.
        parameters: Trainable tensors by name.
        buffers: The other tensors by name.
        images: (N, C, H, W), pixels.

    Returns:
        (N, F) and (N, K).
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        captured.append(arguments[0])

    # BatchNorm updates its buffers in place; the given ones stay as they are.
    state = {name: tensor.clone() for name, tensor in buffers.items()}
    handle = model.get_submodule(layer).register_forward_pre_hook(capture)
    try:
        logits: Tensor = functional_call(model, {**parameters, **state}, (images,))
    finally:
        handle.remove()
    return captured[-1].flatten(1), logits
