"""What a defense is: a pure function of the update, applied before it leaves the client."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Defense(Protocol):
    """A frozen dataclass that holds its hyper-parameters and is called with the update."""

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the defended update.

        Args:
            update: ``w_c - w_t`` (FedAvg) or the gradient (FedSGD), by tensor name. Not changed.
            num_examples: N_c.
            generator: The only source of randomness; differs by client and round.

        Returns:
            Tensors of the same names, shapes and dtypes. A defense of strength zero returns ``update`` itself.
        """
        ...


def chain(defenses: Sequence[Defense]) -> Defense:
    """Return the defense that applies several in order, the first one first."""

    def apply_all(
        update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        for defense in defenses:
            update = defense(update, num_examples=num_examples, generator=generator)
        return update

    return apply_all
