"""An estimate of N_c or the reason why there is none. No truth is at hand here."""

from dataclasses import dataclass

import torch

from attacker.attack import DoesNotApplyError
from attacker.num_examples import NumExamplesEstimate, estimate_num_examples
from attacker.observation import NotGrantedError, Observation
from attacker.placement import in_place_of_update


@dataclass(frozen=True, slots=True, kw_only=True)
class NumExamplesTrial:
    """What one update said.

    Attributes:
        estimate: N_c with its interval; ``None`` where no method applies.
        reason: Why none applies; ``None`` where one does.
    """

    estimate: NumExamplesEstimate | None
    reason: str | None


def try_num_examples(observation: Observation, *, generator: torch.Generator) -> NumExamplesTrial:
    """Estimate N_c, which is not looked at where it is granted.

    Args:
        observation: The update.
        generator: Draws dummy images from public facts.
    """
    try:
        estimate = estimate_num_examples(in_place_of_update(observation), generator=generator)
    except (DoesNotApplyError, NotGrantedError) as error:
        return NumExamplesTrial(estimate=None, reason=str(error))
    return NumExamplesTrial(estimate=estimate, reason=None)
