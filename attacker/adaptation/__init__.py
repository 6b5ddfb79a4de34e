"""The attacker who knows the clients' defenses: what becomes of a simulated update before it is compared.

A followed defense maps a simulated mean gradient S to one that differs from the observed O only by what the defense
does not explain, so that every distance and every attack can use it. One file a family; `FOLLOWED` names them.

    pruning, top-k       dropped entries are not compared, or with the threshold below which they lay, or with zero
    clipping, DP-SGD     clipped as the client clips: examples and steps inside the simulation, the update behind it
    quantisation         zero inside the interval that the level tells
    sign                 agreement of signs; magnitudes only in their mean
    noise                its level: how far the matching is trusted beside the priors, each tensor beside the others,
                         and which directions of a layer are seen at all; Laplace noise by its likelihood
    soteria              the defended layer's weight is left out

What cannot be followed is said, with the reason, in the remarks of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from attacker.adaptation.clipping import clipping
from attacker.adaptation.link import Client, Follow, Link, Part
from attacker.adaptation.noise import (
    dp_sgd,
    gaussian_noise,
    laplace_noise,
    laplace_residuals,
    noise_energy,
    weighted_residuals,
)
from attacker.adaptation.pruning import largest_entries, random_pruning
from attacker.adaptation.quantisation import quantisation
from attacker.adaptation.sign import sign
from attacker.adaptation.soteria import soteria
from attacker.gradient_clipping import GradientClipping
from fl_sim.parameters import Parameters, flatten
from fl_sim.records import DeclaredDefense

FOLLOWED: Mapping[str, Callable[[Link], Part]] = {
    "clipping": clipping,
    "gaussian_noise": gaussian_noise,
    "laplace_noise": laplace_noise,
    "random_pruning": random_pruning,
    "magnitude_pruning": largest_entries,
    "top_k": largest_entries,
    "quantisation": quantisation,
    "sign": sign,
    "dp_sgd": dp_sgd,
    "soteria": soteria,
}

_PRESUPPOSED_NOISE = 0.01
"""Noise over signal, in energy, that the weights of attacks without noise are made for.

Measured with `inverting_gradients` on a small network: with noise of 0.1, 1 and 4 times the energy of the update, total
variation 10, 100 and 300 times as strong was best.
"""
_MODEL_ERROR = 0.3
"""Share of a tensor's energy that a simulation with unknown batches is taken to get wrong; 0.1 and 1 do as well."""
_LEAST_SIGNAL = 0.05
"""Share of what was observed that counts as signal at least: the noise's energy is known in its mean only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """All that an attack makes of the known defenses.

    Attributes:
        steps: What becomes of a simulated mean gradient, one after the other.
        clipping: What becomes of gradients inside the simulation; ``None``: nothing.
        variance: Of the noise in an entry of each tensor of the observed mean gradient; empty without noise.
        trust: In (0, 1], by which the matching term is to be multiplied beside priors whose weights are made for
            updates without noise; 1 without noise.
        knows_length: Whether the length of a simulated update is to be compared as well as its direction.
        muted: Tensors of the observed mean gradient that say nothing.
        remarks: What is followed; what is not, and why.
    """

    steps: tuple[Follow, ...] = ()
    clipping: GradientClipping | None = None
    variance: Mapping[str, float] = field(default_factory=dict[str, float])
    trust: float = 1.0
    knows_length: bool = False
    muted: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def follow(self, simulated: Parameters) -> dict[str, torch.Tensor]:
        """Return what a client with this mean gradient would have sent, as far as the defenses tell."""
        for step in self.steps:
            simulated = step(simulated)
        return dict(simulated)


def adaptation(defenses: Sequence[DeclaredDefense], observed: Parameters, client: Client) -> Adaptation:
    """Return how the declared defenses are followed.

    Args:
        defenses: The clients' chain, in its order.
        observed: The mean gradient that was received.
        client: What is known of who sent it.
    """
    parts: list[Part] = []
    variance: dict[str, float] = {}
    unexplained: dict[str, float] = {}
    for position, defense in enumerate(defenses):
        link = Link(
            defense=defense,
            after=tuple(defenses[position + 1 :]),
            observed=observed,
            client=client,
            variance=dict(variance),
        )
        part = FOLLOWED[defense.name](link) if defense.name in FOLLOWED else _unknown(defense)
        parts.append(part)
        variance = _sum(observed, variance, part.variance)
        unexplained = unexplained if part.is_explained else _sum(observed, unexplained, part.variance)
    steps = [part.follow for part in parts if part.follow is not None]
    noisy = [part for part in parts if part.variance]
    # A sum of noises is Laplace no more, nor is what another defense acts on.
    is_laplace = len(noisy) == 1 and noisy[0].is_laplace and parts[-1] is noisy[0]
    if is_laplace:
        steps.append(laplace_residuals(observed, (next(iter(noisy[0].variance.values())) / 2.0) ** 0.5))
    elif any(unexplained.values()) and client.recipe.batches_per_epoch(client.num_examples) > 1:
        steps.append(weighted_residuals(observed, unexplained, _MODEL_ERROR))
    return Adaptation(
        steps=tuple(steps),
        clipping=_tightest([part.clipping for part in parts if part.clipping is not None]),
        variance={name: own for name, own in variance.items() if own},
        trust=_trust(observed, unexplained),
        knows_length=is_laplace or any(part.knows_length for part in parts),
        muted=tuple(name for part in parts for name in part.muted),
        remarks=_remarks(parts),
    )


def _sum(observed: Parameters, first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in observed}


def _unknown(defense: DeclaredDefense) -> Part:
    return Part(undone=f"{defense.name}: not among the defenses that this attack knows ({', '.join(FOLLOWED)})")


def _tightest(clippings: Sequence[GradientClipping]) -> GradientClipping | None:
    """Return all clippings of one kind as one: clipping twice is clipping to the smaller norm."""
    if not clippings:
        return None
    return GradientClipping(
        example=min(clipping.example for clipping in clippings), step=min(clipping.step for clipping in clippings)
    )


def _trust(observed: Parameters, variance: Mapping[str, float]) -> float:
    energy, noise = float(flatten(observed).square().sum()), noise_energy(observed, variance)
    if noise == 0.0 or energy == 0.0:
        return 1.0
    return _PRESUPPOSED_NOISE / (_PRESUPPOSED_NOISE + noise / max(energy - noise, _LEAST_SIGNAL * energy))


def _remarks(parts: Sequence[Part]) -> tuple[str, ...]:
    done, undone = [part.done for part in parts if part.done], [part.undone for part in parts if part.undone]
    followed = (f"follows the defenses: {', '.join(done)}",) if done else ()
    return (*followed, *(f"does not follow {reason}" for reason in undone))
