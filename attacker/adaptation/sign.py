"""The sign: one bit of each entry arrives, and the mean magnitude of each tensor.

    s'_i = sign_i (m - M h_i),     h_i = max(0, kappa - sign_i s_i / m),     m = mean |s|,   M = mean |u|, received

An entry of the right sign and of some size is as good as any other: magnitudes are not observed, their mean is.
"""

import torch
from torch import Tensor

from attacker.adaptation.link import Follow, Link, Part, not_followed
from fl_sim.parameters import Parameters

_KEEP_SIGNS = ("clipping", "sign", "random_pruning", "magnitude_pruning", "top_k")
_MARGIN = 0.1


def sign(link: Link) -> Part:
    """Return the part that asks for the signs and for the mean magnitudes."""
    if not link.acts_on_what_is_sent:
        return not_followed(link, f"the signs of each {link.defense.where} are not seen, only their mean")
    if link.client.num_rounds > 1:
        return not_followed(link, "only the mean of several rounds' signs is looked at")
    hides = link.changed_by(*_KEEP_SIGNS)
    if hides is not None:
        return not_followed(link, f"signs are hidden by {hides} behind it")
    return Part(
        follow=_agreeing_signs(link.observed), knows_length=True, done="sign (agreement of signs, mean magnitudes)"
    )


def _agreeing_signs(observed: Parameters) -> Follow:
    signs = {name: tensor.sign() for name, tensor in observed.items()}
    magnitudes = {name: tensor.abs().amax() for name, tensor in observed.items()}

    def follow(simulated: Parameters) -> dict[str, Tensor]:
        return {name: _compared(tensor, signs[name], magnitudes[name]) for name, tensor in simulated.items()}

    return follow


def _compared(simulated: Tensor, signs: Tensor, magnitude: Tensor) -> Tensor:
    mean = simulated.abs().mean().clamp_min(torch.finfo(simulated.dtype).tiny)
    missing = torch.relu(_MARGIN - signs * simulated / mean)
    # An entry of exactly zero arrives as zero: that one is known.
    return torch.where(signs == 0, simulated, signs * (mean - magnitude * missing))
