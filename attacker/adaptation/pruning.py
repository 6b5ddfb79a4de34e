"""Pruning, random or by magnitude, and top-k: what was kept arrives as it is, what was dropped arrives as zero.

random              a dropped entry says nothing: only the others are compared
magnitude, top-k    a dropped entry was no larger than the smallest that was kept: an interval; it is drawn to zero
                    inside of it where less was kept than the images have pixels
"""

import torch
from torch import Tensor

from attacker.adaptation.link import Follow, Link, Part, not_followed
from fl_sim.parameters import Parameters

# None of these turns a zero into something else, nor (but for the sign of nothing) something else into a zero.
_KEEP_ZEROS = ("clipping", "sign", "random_pruning", "magnitude_pruning", "top_k", "quantisation")
_KEEP_VALUES = ("random_pruning", "magnitude_pruning", "top_k")

# What of an entry inside the interval counts where fewer entries were kept than the images have pixels. Without it,
# knowing lost to not knowing where few were kept; twice as much did worse where many were (docs/defenses.md).
_INSIDE = 0.2


def random_pruning(link: Link) -> Part:
    """Return the part that compares what was kept."""
    refused = _refused(link)
    if refused is not None:
        return refused
    return Part(follow=_kept_entries(link.observed), done="random_pruning (kept entries only)")


def largest_entries(link: Link) -> Part:
    """Return the part that compares what was kept, and holds what was dropped below the smallest that was kept.

    The threshold is read off what arrived; behind it nothing may change the size of entries, else only the kept ones
    are compared. Noise before it does not matter: what was compared with the threshold was noisy as well, and so is
    what exceeds it here.
    """
    refused = _refused(link)
    if refused is not None:
        return refused
    name = link.defense.name
    if link.changed_by(*_KEEP_VALUES) is not None:
        return Part(follow=_kept_entries(link.observed), done=f"{name} (kept entries only)")
    num_kept = sum(int(tensor.count_nonzero()) for tensor in link.observed.values())
    if num_kept < link.client.num_unknowns:
        follow = _below_threshold(link.observed, inside=_INSIDE)
        return Part(follow=follow, done=f"{name} (kept entries; the others below the threshold, drawn to zero)")
    return Part(
        follow=_below_threshold(link.observed, inside=0.0),
        done=f"{name} (kept entries; the others below the threshold)",
    )


def _refused(link: Link) -> Part | None:
    if not link.acts_on_what_is_sent:
        return not_followed(link, f"which entries of each {link.defense.where} were kept is not seen")
    if link.client.num_rounds > 1:
        return not_followed(link, "each round dropped other entries, and only the mean of the rounds is looked at")
    hides = link.changed_by(*_KEEP_ZEROS)
    return None if hides is None else not_followed(link, f"which entries were kept is hidden by {hides} behind it")


def _kept_entries(observed: Parameters) -> Follow:
    kept = {name: tensor != 0 for name, tensor in observed.items()}
    return lambda simulated: {name: tensor * kept[name] for name, tensor in simulated.items()}


def _below_threshold(observed: Parameters, *, inside: float) -> Follow:
    kept = {name: tensor != 0 for name, tensor in observed.items()}
    smallest = [tensor[kept[name]].abs().amin() for name, tensor in observed.items() if bool(kept[name].any())]
    if not smallest:  # an update of zeros has no threshold
        return _kept_entries(observed)
    threshold = torch.stack(smallest).amin()

    def follow(simulated: Parameters) -> dict[str, Tensor]:
        return {
            name: torch.where(kept[name], tensor, tensor - (1 - inside) * tensor.clamp(-threshold, threshold))
            for name, tensor in simulated.items()
        }

    return follow
