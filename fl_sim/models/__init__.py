"""Architectures: one file each; `MODELS` names them.

A model is a function ``factory(*, dataset, generator, **options) -> nn.Module``. It maps pixels (N, C, H, W) in [0, 1]
to logits (N, K); the normalisation is its first layer, and its initial weights depend on the generator only, or
come from the file that the option ``weights`` names. Clients and attacks replace the weights anyway and build the model
without that option.
"""

from collections.abc import Callable

from torch import nn

from fl_sim.models.cifar_cnn import cifar_cnn
from fl_sim.models.convnet import convnet
from fl_sim.models.efficientnet_lite import efficientnet_lite0
from fl_sim.models.femnist_cnn import femnist_cnn
from fl_sim.models.lenet import lenet
from fl_sim.models.mlp import mlp
from fl_sim.models.normalisation import Normalisation
from fl_sim.models.resnets import resnet18, resnet34, resnet50, resnet101, resnet152
from fl_sim.models.trained_weights import without_trained_weights
from fl_sim.tables import Table, function_of

MODELS: Table[Callable[..., nn.Module]] = Table(
    "model",
    {
        "femnist_cnn": femnist_cnn,
        "cifar_cnn": cifar_cnn,
        "mlp": mlp,
        "lenet": lenet,
        "convnet": convnet,
        "resnet18": resnet18,
        "resnet34": resnet34,
        "resnet50": resnet50,
        "resnet101": resnet101,
        "resnet152": resnet152,
        "efficientnet_lite0": efficientnet_lite0,
    },
    check=function_of("dataset", "generator"),
)

__all__ = ["MODELS", "Normalisation", "without_trained_weights"]
