"""One link of the clients' chain as the attacker meets it, and what the attacker makes of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, nn

from attacker.gradient_clipping import GradientClipping
from fl_sim.parameters import Parameters
from fl_sim.records import Algorithm, DeclaredDefense, LocalTraining

Follow: TypeAlias = Callable[[Parameters], dict[str, Tensor]]
"""A simulated mean gradient to one that differs from the observed one only by what the defense does not explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the attacker knows of whoever sent the update.

    Attributes:
        model: The architecture.
        algorithm: What clients send.
        recipe: E, m, eta, momentum.
        num_examples: N_c.
        image_shape: (C, H, W).
        num_rounds: Rounds over which the update is a mean.
    """

    model: nn.Module
    algorithm: Algorithm
    recipe: LocalTraining
    num_examples: int
    image_shape: tuple[int, int, int]
    num_rounds: int = 1

    @property
    def num_unknowns(self) -> int:
        """Pixels of all images."""
        return self.num_examples * math.prod(self.image_shape)

    @property
    def unit(self) -> float:
        """The length of an update whose mean gradient has length 1: eta U for FedAvg, 1 for FedSGD."""
        if self.algorithm is Algorithm.FEDSGD:
            return 1.0
        return self.recipe.learning_rate * self.recipe.steps(self.num_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A defense in its chain.

    Attributes:
        defense: Which.
        after: The defenses that act on its result, in their order.
        observed: The mean gradient that was received, after all of them.
        client: Who sent it.
        variance: Of the noise that the defenses before it left in an entry of each tensor; empty without noise.
    """

    defense: DeclaredDefense
    after: tuple[DeclaredDefense, ...]
    observed: Parameters
    client: Client
    variance: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def acts_on_what_is_sent(self) -> bool:
        """Whether it acts on the update, which is the gradient of the only step for FedSGD."""
        where = self.defense.where
        return where == "update" or (where == "step" and self.client.algorithm is Algorithm.FEDSGD)

    def option(self, name: str) -> float:
        """Return a hyper-parameter that is a number."""
        return float(self.defense.options[name])

    def changed_by(self, *harmless: str) -> str | None:
        """Return the first later defense that hides what this one did; ``None`` if it can be seen in what arrived.

        Args:
            harmless: Names of defenses that leave it visible.
        """
        return next((later.name for later in self.after if later.name not in harmless), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the attacker makes of a link.

    Attributes:
        follow: What becomes of a simulated mean gradient; ``None``: nothing.
        clipping: What becomes of the gradient of each example and step inside the simulation.
        variance: Of the noise that it leaves in an entry of each tensor of the observed mean gradient.
        is_explained: Whether ``follow`` accounts for that noise, so that the matching is no less to be trusted.
        knows_length: Whether ``follow`` compares lengths with a purpose, so that a distance that is blind to them will
            not do.
        is_laplace: Whether that noise is Laplace, entry by entry.
        muted: Tensors that say nothing any more.
        done: What is followed, for the remarks.
        undone: What is not, and why.
    """

    follow: Follow | None = None
    clipping: GradientClipping | None = None
    variance: Mapping[str, float] = field(default_factory=dict[str, float])
    is_explained: bool = False
    knows_length: bool = False
    is_laplace: bool = False
    muted: tuple[str, ...] = ()
    done: str = ""
    undone: str = ""


def not_followed(link: Link, reason: str) -> Part:
    """Return the part of a link that cannot be followed, with the reason."""
    return Part(undone=f"{link.defense.name}: {reason}")
