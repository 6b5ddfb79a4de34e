"""One audit: the attack that a server could run, and its result held beside the client's own images.

The attack is given an `Observation`, which is what an honest-but-curious server sees. The client's images are looked at
after it has returned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacker.metrics.psnr import psnr_db
from attacker.observation import Observation
from attacker.scoring import score
from attacker.threat_models import HONEST_BUT_CURIOUS
from audit.figures import Figures
from audit.within_time import attack_within
from fl_sim.records import ClientUpdate, DatasetSpec, LocalTraining, RoundRecord
from fl_sim.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateBatch:
    """What the client trained on.

    Attributes:
        images: (N, C, H, W), pixels in [0, 1], before any normalisation.
        labels: (N,), integers.
        public: (P, C, H, W), other images of the kind that anybody might have, whose mean is the guess that a
            reconstruction has to beat; ``None`` guesses the public mean of each channel.
    """

    images: Tensor
    labels: Tensor
    public: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How an update is audited.

    Attributes:
        seconds: Budget of one attack, wall time.
        attack: A name of ATTACKS.
        options: Its hyper-parameters.
        threshold_db: An image counts as recovered above this PSNR.
        seed: Of the attack's randomness.
    """

    seconds: float
    attack: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    threshold_db: float = 20.0
    seed: int = 0


def observe_own(
    model: nn.Module, dataset: DatasetSpec, record: RoundRecord, update: ClientUpdate, training: LocalTraining
) -> Observation:
    """Return what an honest-but-curious server sees of the client's update."""
    return HONEST_BUT_CURIOUS.observe(
        model=model, dataset=dataset, record=record, update=update, local_training=training
    )


def audit_update(trial: Trial, observation: Observation, private: PrivateBatch) -> Figures:
    """Attack an update within the budget, and say what was found.

    Args:
        trial: How.
        observation: What the server will see.
        private: What the client trained on; looked at when the attack has returned.

    Raises:
        ConfigError: If the attack is not known.
        DoesNotApplyError: If the attack is not made for this model.
        NotGrantedError: If it needs what a server does not know.
        ValueError: If the images are not the model's.
    """
    found = attack_within(
        trial.seconds,
        observation,
        name=trial.attack,
        options=dict(trial.options),
        draw=lambda: generator(trial.seed, "audit"),
    )
    scored = score(
        images=found.reconstruction.images.cpu(),
        labels=found.reconstruction.labels.cpu(),
        private_images=private.images,
        private_labels=private.labels.to(torch.int64),
        num_classes=observation.dataset.num_classes,
        threshold_db=trial.threshold_db,
    )
    return Figures(
        psnr_db_max=max((value for value in scored.psnr_db if value is not None), default=float("-inf")),
        psnr_db_mean=float("-inf") if scored.mean_psnr_db is None else scored.mean_psnr_db,
        recovered_share=scored.recovered_share,
        baseline_psnr_db=_best_guess_db(private, observation.dataset),
        wrong_labels=float(scored.label_count_error),
        num_steps=float(found.num_steps),
        seconds=found.seconds,
    )


def _best_guess_db(private: PrivateBatch, dataset: DatasetSpec) -> float:
    """Return the PSNR of the private image that the guess fits best."""
    if private.public is None:
        means = torch.tensor(dataset.mean).reshape(-1, 1, 1).clamp(0, 1)
        guess = means.expand(dataset.image_shape)
    else:
        guess = private.public.mean(dim=0)
    decibels = psnr_db(guess.expand_as(private.images), private.images)
    return float(torch.as_tensor(decibels).max())
