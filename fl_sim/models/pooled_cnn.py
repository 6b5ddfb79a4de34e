"""Two convolutions, each followed by average pooling, and two linear layers: the family of the FedAvg-leakage paper.

The flattened order is PyTorch's (C, H, W), where the authors' JAX code has (H, W, C); that only permutes the columns of
the first linear layer, whose initial weights are exchangeable.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from fl_sim.errors import ConfigError
from fl_sim.models.halving import Halving
from fl_sim.models.initialisation import lecun_normal, seeded_construction
from fl_sim.models.normalisation import Normalisation
from fl_sim.models.trained_weights import load_trained_weights
from fl_sim.records import DatasetSpec


def pooled_cnn(
    *,
    name: str,
    dataset: DatasetSpec,
    generator: torch.Generator,
    widths: tuple[int, int],
    hidden: int,
    paper_table5: bool,
    weights: Path | None,
) -> nn.Module:
    """Build a network of the family with flax's default initialisation.

    Args:
        name: How the model is called in messages.
        dataset: Gives image shape, classes and normalisation.
        generator: The source of the weights.
        widths: Channels of the two convolutions.
        hidden: Width of the first linear layer.
        paper_table5: Makes the second convolution 1x1 with padding 1.
        weights: File with a trained state dict of this network.

    Returns:
        Pixels (N, C, H, W) to logits (N, K).

    Raises:
        ConfigError: If the images are too small to be halved twice, or the file of weights does not fit.
        MissingDataError: If the file of weights does not exist.
    """
    channels, height, width = dataset.image_shape
    if min(height, width) < 4:
        raise ConfigError(f"{name} needs images of 4x4 pixels or more, got {height}x{width}; take mlp, or enlarge them")
    first, second = widths
    growth = 2 if paper_table5 else 0
    features = second * ((height // 2 + growth) // 2) * ((width // 2 + growth) // 2)
    with seeded_construction(generator):
        model = nn.Sequential(
            OrderedDict[str, nn.Module](
                normalisation=Normalisation(dataset.mean, dataset.std),
                conv1=nn.Conv2d(channels, first, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=Halving(),
                conv2=nn.Conv2d(first, second, 1 if paper_table5 else 3, padding=1),
                relu2=nn.ReLU(),
                pool2=Halving(),
                flatten=nn.Flatten(),
                linear1=nn.Linear(features, hidden),
                relu3=nn.ReLU(),
                linear2=nn.Linear(hidden, dataset.num_classes),
            )
        )
    lecun_normal(model, generator)
    if weights is not None:
        load_trained_weights(model, weights, model=name)
    return model
