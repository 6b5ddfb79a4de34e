"""An objective whose costly half is looked at less often: the matching gradient is held for several optimiser steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacker.gradient_matching import Term


class HeldMatching:
    """To be minimised by `attacker.gradient_matching.minimise`: factor * matching + prior.

    The gradient of the matching term, a whole local training, is taken in every ``hold``-th step and held in between;
    that of the prior, which costs a hundredth of it, in every step.
    """

    def __init__(
        self,
        matching: Term,
        prior: Callable[[Tensor, int], Tensor],
        *,
        hold: int,
        on_loss: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Keep the terms.

        Args:
            matching: Distance between the simulated and the observed update, shape ().
            prior: What is added, shape (), at a step counted from 0.
            hold: Steps for which a gradient of the matching term serves, >= 1.
            on_loss: Told the matching loss, shape (), each time that its gradient was taken.
        """
        self.matching = matching
        self._prior = prior
        self._hold = hold
        self._on_loss = on_loss
        self._held: tuple[Tensor, Tensor] | None = None

    def gradient(self, variables: Tensor, *, factor: float, step: int) -> tuple[Tensor, Tensor]:
        """See `attacker.gradient_matching.Minimised`; the loss is the one at which the held gradient was taken."""
        if self._held is None or step % self._hold == 0:
            matching = self.matching(variables)
            (gradient,) = torch.autograd.grad(matching, variables)
            self._held = matching.detach(), gradient
            if self._on_loss is not None:
                self._on_loss(self._held[0])
        loss, held = self._held
        (own,) = torch.autograd.grad(self._prior(variables, step), variables)
        return loss, factor * held + own
