"""How many images a client holds, N_c, where nobody says so: from the update, the weights sent out and the recipe.

every image visited once            N_c = rank of the first fully connected layer's update, counted
a few images, visited repeatedly    the place of a wide gap between its singular values
otherwise                           the N_c that makes the last layer's label counts whole numbers
"""

import math

import torch

from attacker.attack import DoesNotApplyError
from attacker.labels.last_layer import find_last_layer
from attacker.num_examples.class_sums import is_altered
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
        if not rank.noisy and _is_altered(observation):
            raise DoesNotApplyError(
                "the last layer's update does not sum to 0 over the classes, which says that a defense has changed it"
            )
    except DoesNotApplyError as error:
        unseen = str(error)
    else:
        if once and rank.complete:
            return _counted(rank.directions, "rank")
        # Each visit of an image adds one direction at most.
        visits = 1 if once else recipe.epochs
        at_least = max(1, math.ceil(rank.directions / visits))
        if not once and rank.gap >= at_least:
            return _counted(rank.gap, "gap between singular values")
        unseen = _reason(rank, once=once)
    try:
        return num_examples_from_label_shares(observation, generator=generator, at_least=at_least)
    except DoesNotApplyError as error:
        raise DoesNotApplyError(f"{unseen}; {error}") from error


def _counted(num_examples: int, method: str) -> NumExamplesEstimate:
    return NumExamplesEstimate(num_examples=num_examples, low=num_examples, high=num_examples, method=method)


def _is_altered(observation: Observation) -> bool:
    """Return whether class sums betray a defense; not if the model has no last layer that could."""
    try:
        layer = find_last_layer(observation.model, observation.dataset.num_classes)
    except DoesNotApplyError:
        return False
    return is_altered(observation, layer)


def _reason(rank: WeightRank, *, once: bool) -> str:
    if rank.noisy:
        return "the first fully connected layer's update has a floor, of noise or of more images than units"
    if once:
        return f"the first fully connected layer has {rank.limit} active units, and N_c is {rank.directions} or more"
    return "several epochs blur the singular values of the first fully connected layer's update"
