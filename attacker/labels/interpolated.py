"""Label counts from the last layer's weight gradient, with softmax and features interpolated over the local steps."""

import torch
from torch import Tensor

from attacker.labels.kernel_gradient import counts_from_kernel_gradient
from attacker.observation import Observation


def interpolated(observation: Observation, *, generator: torch.Generator) -> Tensor:
    """Estimate the counts at each local step i = 0 .. U-1, a share i/U of the way from w_t to w_c, and average.

    Args:
        observation: The update.
        generator: Draws dummy images N(0, 1).

    Returns:
        (K,), int64, with sum N_c.

    Raises:
        DoesNotApplyError: If the model does not end in a fully connected layer.
        NotGrantedError: If N_c or the recipe of local training is not granted.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Sec. 4.5, Algorithm 3 (RecLabels), with the
        weights of the released code.
    """
    num_steps = observation.require_local_training().steps(observation.require_num_examples())
    fractions = [step / num_steps for step in range(num_steps)]
    return counts_from_kernel_gradient(observation, fractions, generator=generator)
