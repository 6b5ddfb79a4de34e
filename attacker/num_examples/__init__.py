"""How many images a client holds, N_c, where nobody says so: from the update, the weights sent out and the recipe.

every image visited once            N_c = rank of the first fully connected layer's update, counted
a few images, visited repeatedly    the place of a wide gap between its singular values
otherwise                           the N_c that makes the last layer's label counts whole numbers
"""

import torch

from attacker.attack import DoesNotApplyError
from attacker.num_examples.estimate import NumExamplesEstimate
from attacker.num_examples.label_shares import num_examples_from_label_shares
from attacker.num_examples.weight_rank import WeightRank, weight_rank
from attacker.observation import Observation
from fl_sim.records import Algorithm

__all__ = ["NumExamplesEstimate", "estimate_num_examples"]


def estimate_num_examples(observation: Observation, *, generator: torch.Generator) -> NumExamplesEstimate:
    """Estimate N_c of one client's reply in one round; N_c itself is not looked at, granted or not.

    Args:
        observation: The update.
        generator: Draws dummy images from public facts.

    Raises:
        DoesNotApplyError: If neither spectrum nor label shares tell N_c; the message has both reasons.
        NotGrantedError: If the recipe of local training (E, m, eta) is not granted.

    References:
        This project; see `attacker.num_examples.weight_rank` and `attacker.num_examples.label_shares`.
    """
    recipe = observation.require_local_training()
    if observation.num_rounds > 1:
        raise DoesNotApplyError(f"N_c is read from the reply of one round, got a mean over {observation.num_rounds}")
    once = observation.algorithm is Algorithm.FEDSGD or recipe.epochs == 1
    at_least = 1
    try:
        rank = weight_rank(observation)
    except DoesNotApplyError as error:
        unseen = str(error)
    else:
        counted = rank.directions if once and not rank.noisy else rank.gap
        if counted and not (once and rank.is_full):
            method = "rank" if once and not rank.noisy else "gap between singular values"
            return NumExamplesEstimate(num_examples=counted, low=counted, high=counted, method=method)
        # Each image and visit adds one direction at most, and noise adds some of its own.
        at_least = max(1, rank.directions) if once and not rank.noisy else 1
        unseen = _reason(rank, once=once)
    try:
        return num_examples_from_label_shares(observation, generator=generator, at_least=at_least)
    except DoesNotApplyError as error:
        raise DoesNotApplyError(f"{unseen}; {error}") from error


def _reason(rank: WeightRank, *, once: bool) -> str:
    if not rank.limit:
        return "the first fully connected layer has no update"
    if rank.noisy:
        return "noise hides directions of the first fully connected layer's update"
    if once:
        return f"all {rank.limit} active units of the first fully connected layer are taken: N_c >= {rank.limit}"
    return "several epochs blur the singular values of the first fully connected layer's update"
