"""A compact convolutional network without normalisation layers: the workhorse of quick experiments."""

from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fl_sim.errors import ConfigError
from fl_sim.models.halving import Halving
from fl_sim.models.initialisation import seeded_construction
from fl_sim.models.normalisation import Normalisation
from fl_sim.models.trained_weights import load_trained_weights
from fl_sim.records import DatasetSpec


def convnet(
    *,
    dataset: DatasetSpec,
    generator: torch.Generator,
    width: int = 32,
    depth: int = 3,
    padding_mode: Literal["zeros", "circular"] = "zeros",
    global_pooling: bool = False,
    weights: Path | None = None,
) -> nn.Module:
    """Build 3x3 convolutions of 1, 2, 4, 4, ... times ``width`` channels and a linear layer, PyTorch's initialisation.

    The size is halved after the second and after the last convolution.

    Args:
        dataset: Gives image shape (4x4 pixels or more), classes and normalisation.
        generator: The source of the weights.
        width: Channels of the first convolution, >= 1.
        depth: Number of convolutions, >= 3.
        padding_mode: What lies beyond the border of an image; ``"circular"`` hides where the image begins.
        global_pooling: Takes the mean over all positions instead of halving the size a second time. With circular
            padding the gradient is then blind to a shift of the image in circles by an even number of pixels.
        weights: File with a trained state dict of this network.

    Returns:
        Pixels (N, C, H, W) to logits (N, K).

    Raises:
        ConfigError: If the width is less than 1, the depth less than 3, the images are too small to be halved twice, or
            the file of weights does not fit.
        MissingDataError: If the file of weights does not exist.
    """
    channels, image_height, image_width = dataset.image_shape
    if width < 1:
        raise ConfigError(f"width must be >= 1, got {width}")
    if depth < 3:
        raise ConfigError(f"depth must be >= 3, got {depth}")
    if min(image_height, image_width) < 4:
        raise ConfigError(
            f"convnet needs images of 4x4 pixels or more, got {image_height}x{image_width}; take mlp, or enlarge them"
        )
    positions = 1 if global_pooling else (image_height // 2 // 2) * (image_width // 2 // 2)
    layers = OrderedDict[str, nn.Module](normalisation=Normalisation(dataset.mean, dataset.std))
    with seeded_construction(generator):
        for number in range(1, depth + 1):
            outputs = width * min(2 ** (number - 1), 4)
            layers[f"conv{number}"] = nn.Conv2d(channels, outputs, 3, padding=1, padding_mode=padding_mode)
            layers[f"relu{number}"] = nn.ReLU()
            if number in (2, depth):
                everywhere = global_pooling and number == depth
                layers[f"pool{number}"] = nn.AdaptiveAvgPool2d(1) if everywhere else Halving()
            channels = outputs
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(4 * width * positions, dataset.num_classes)
    model = nn.Sequential(layers)
    if weights is not None:
        load_trained_weights(model, weights, model="convnet")
    return model
