"""The smooth LeNet of the first gradient-inversion paper: twice differentiable everywhere, weights far from zero."""

import math
from collections import OrderedDict

import torch
from torch import nn

from fl_sim.models.initialisation import seeded_construction, uniform
from fl_sim.models.normalisation import Normalisation
from fl_sim.records import DatasetSpec

_WIDTH = 12
_STRIDES = (2, 2, 1)


def lenet(*, dataset: DatasetSpec, generator: torch.Generator) -> nn.Module:
    """Build three 5x5 convolutions of 12 channels with strides 2, 2, 1 and sigmoids, and one linear layer.

    Args:
        dataset: Gives image shape, classes and normalisation.
        generator: The source of the weights and biases, U(-0.5, 0.5).

    Returns:
        Pixels (N, C, H, W) to logits (N, K).

    References:
        Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Sec. 4.1.
    """
    channels, height, width = dataset.image_shape
    layers = OrderedDict[str, nn.Module](normalisation=Normalisation(dataset.mean, dataset.std))
    with seeded_construction(generator):
        for number, stride in enumerate(_STRIDES, start=1):
            layers[f"conv{number}"] = nn.Conv2d(channels, _WIDTH, 5, padding=2, stride=stride)
            layers[f"sigmoid{number}"] = nn.Sigmoid()
            channels, height, width = _WIDTH, math.ceil(height / stride), math.ceil(width / stride)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(channels * height * width, dataset.num_classes)
    model = nn.Sequential(layers)
    uniform(model, generator, bound=0.5)
    return model
