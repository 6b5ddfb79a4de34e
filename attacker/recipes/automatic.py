"""The attack that did best in the situation that the server sees.

    one local step, as in FedSGD             feature_span: gradients are cheap, so a thousand of them
    local steps, and the update tells a span feature_span
    no span, or a known defense hides it     fedavg_leakage with the cosine distance

What was measured for it: docs/attacks.md.
"""

from dataclasses import dataclass, replace

import torch

from attacker.attack import Attack, OnStep, Reconstruction, ignore_progress
from attacker.image_span import NoSpan, image_span, spanned_layer
from attacker.inversion_problem import problem_with_labels
from attacker.observation import Observation
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.recipes.ranges import check_at_least_one


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An attack, and why it.

    Attributes:
        attack: The attack with its hyper-parameters.
        remark: What a person should know.
    """

    attack: Attack
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Automatic:
    """Takes `FeatureSpan` or `FedAvgLeakage`: by the model, the numbers of images and of local steps, known defenses.

    Attributes:
        steps: Adam steps of that attack, in `FeatureSpan` of its coarse part; ``None`` takes what did well.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs, of which the lowest matching loss is kept.

    References:
        This project.
    """

    steps: int | None = None
    label_recovery: str = "automatic"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(restarts=self.restarts, **({} if self.steps is None else {"steps": self.steps}))

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`.

        Raises:
            NotGrantedError: If the recipe of local training or N_c is not granted.
        """
        choice = self.choose(observation)
        found = choice.attack(observation, generator=generator, on_step=on_step)
        return replace(found, remarks=(choice.remark, *found.remarks))

    def choose(self, observation: Observation) -> Choice:
        """Say which attack is taken, and why; no image is looked for.

        Raises:
            NotGrantedError: As above.
        """
        cohort, recipe = observation.require_cohort(), observation.require_local_training()
        reason = _why_no_span(observation)
        if reason is not None:
            cosine = FedAvgLeakage(loss="cosine", label_recovery=self.label_recovery, restarts=self.restarts)
            return self._choice(cosine, f"fedavg_leakage was taken: no span, {reason}")
        attack = FeatureSpan(label_recovery=self.label_recovery, restarts=self.restarts)
        if max(map(recipe.steps, cohort)) > 1:
            return self._choice(attack, "feature_span was taken")
        patient = replace(attack, steps=1000, coarse_hold=1, learning_rate=0.1, quadratic_variation=3e-4)
        return self._choice(patient, "feature_span was taken, with more and smaller steps: one local step")

    def _choice(self, attack: FeatureSpan | FedAvgLeakage, remark: str) -> Choice:
        return Choice(attack=attack if self.steps is None else replace(attack, steps=self.steps), remark=remark)


def _why_no_span(observation: Observation) -> str | None:
    """Say why the update tells no span, or that a known defense hides it; ``None`` where it tells one."""
    num_images = sum(observation.require_cohort())
    if observation.knowledge.defenses:
        # Labels have no part in the span.
        span = image_span(problem_with_labels(observation, torch.zeros(num_images, dtype=torch.int64)))
    else:
        span = spanned_layer(observation.model, num_images)
    return span.reason if isinstance(span, NoSpan) else None
