"""Label counts from the last layer's weight gradient, as if all of it had been computed at the server's weights."""

import torch
from torch import Tensor

from attacker.labels.kernel_gradient import counts_from_kernel_gradient
from attacker.observation import Observation


def geng_server(observation: Observation, *, generator: torch.Generator) -> Tensor:
    """Estimate the counts with softmax and features at w_t; right for FedSGD, best where local training is short.

    Args:
        observation: The update.
        generator: Draws dummy images N(0, 1).

    Returns:
        (K,), int64, with sum N_c.

    Raises:
        DoesNotApplyError: If the model does not end in a fully connected layer.
        NotGrantedError: If N_c or the recipe of local training is not granted.

    References:
        Geng et al., Towards General Deep Leakage in Federated Learning, arXiv:2110.09074, 2021.
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Table 2 ("Geng et al. theta_s").
    """
    return counts_from_kernel_gradient(observation, (0.0,), generator=generator)
