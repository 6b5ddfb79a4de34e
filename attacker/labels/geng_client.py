"""Label counts from the last layer's weight gradient, as if all of it had been computed at the client's last step."""

import torch
from torch import Tensor

from attacker.labels.kernel_gradient import counts_from_kernel_gradient
from attacker.observation import Observation


def geng_client(observation: Observation, *, generator: torch.Generator) -> Tensor:
    """Estimate the counts with softmax and features at the weights of the last local step, interpolated.

    These are w_t + (1 - 1/U) delta, as in the released code of Dimitrov et al.; for FedSGD that is w_t.

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
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Table 2 ("Geng et al. theta_c").
    """
    num_steps = observation.require_local_training().steps(observation.require_num_examples())
    return counts_from_kernel_gradient(observation, (1.0 - 1.0 / num_steps,), generator=generator)
