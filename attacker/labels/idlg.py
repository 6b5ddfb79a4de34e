"""One image, one gradient: the true class is the only one whose last-layer gradient is negative."""

import torch
from torch import Tensor

from attacker.attack import DoesNotApplyError
from attacker.labels.last_layer import find_last_layer
from attacker.observation import Observation, mean_gradient


def idlg(observation: Observation, *, generator: torch.Generator) -> Tensor:
    """Read the label of a single image from a sign; exact for FedSGD.

    The gradient of logit k is p_k - [k = y], negative for the true class y only. It is the bias gradient; a layer
    without bias shows it times its inputs, which are taken to be non-negative on average.

    Args:
        observation: The update of a client with N_c = 1.
        generator: Not used; nothing is drawn.

    Returns:
        (K,), int64, a single 1.

    Raises:
        DoesNotApplyError: If N_c is not 1, or the model does not end in a fully connected layer.
        NotGrantedError: If N_c or the recipe of local training is not granted.

    References:
        Zhao et al., iDLG: Improved Deep Leakage from Gradients, arXiv:2001.02610, 2020, Eq. 4-5.
    """
    del generator
    num_examples = observation.require_num_examples()
    if num_examples != 1:
        raise DoesNotApplyError(f"idlg reads the label of one image, got N_c = {num_examples}; use bias_gradient")
    layer = find_last_layer(observation.model, observation.dataset.num_classes)
    gradient = mean_gradient(observation)
    by_class = gradient[layer.weight].sum(dim=1) if layer.bias is None else gradient[layer.bias]
    counts = torch.zeros(observation.dataset.num_classes, dtype=torch.int64)
    counts[int(by_class.argmin())] = 1
    return counts
