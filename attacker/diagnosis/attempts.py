"""How far the images that an attack found are from the truth in the very matching that the attack minimised.

Both are replayed alike: in the true order, each found image in the place of the private one that it resembles most. A
found loss far above the truth's says that a better search would have found better images; one as low as the truth's,
that the matching cannot tell them from the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacker.attack_store import AttackSetting
from attacker.diagnosis.replay import DeclaredTraining, replay
from attacker.distances import DISTANCES
from attacker.matching import UNMATCHED, match
from attacker.results import Result
from fl_sim.parameters import Parameters, scale

_DISTANCES = {"inverting_gradients": "cosine", "gradinversion": "layerwise_l2"}
"""Of attacks that have no option ``loss``; the others take the relative squared distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attack on the update.

    Attributes:
        attack: Its name.
        setting: Its folder.
        threat_model: What it was granted.
        seed: Of the attack.
        outcome: How it ended.
        distance: Name of the distance that it minimised, in DISTANCES.
        recorded_loss: As it reported it, with its own labels, order and scale; not a number if it has none.
        found: The distance of the found images and labels.
        truth: The distance of the private images and labels.
        mean_psnr_db: Of the reconstruction, or ``None`` where it was not scored.
    """

    attack: str
    setting: str
    threat_model: str
    seed: int
    outcome: str
    distance: str
    recorded_loss: float
    found: float
    truth: float
    mean_psnr_db: float | None


def compare_attempts(training: DeclaredTraining, delta: Parameters, results: Sequence[Result]) -> tuple[Attempt, ...]:
    """Compare each attack's images with the truth.

    Args:
        training: The declared training on the true images.
        delta: w_c - w_t as it was received, of all the model's tensors.
        results: Of attacks on this very update; those that found another number of images are left out.
    """
    return tuple(
        _compared(training, delta, result)
        for result in results
        if result.reconstruction.images.shape == training.images.shape
    )


def distance_of(setting: AttackSetting) -> str:
    """Return the name of the distance that an attack minimises."""
    loss = str(setting.options.get("loss"))
    return loss if loss in tuple(DISTANCES) else _DISTANCES.get(setting.name, "relative_squared_l2")


def _compared(training: DeclaredTraining, delta: Parameters, result: Result) -> Attempt:
    found = result.reconstruction
    places = match(training.images.float(), found.images)
    assert UNMATCHED not in places  # as many images as private ones
    believed = replace(training, images=found.images[places].double(), labels=found.labels[places])
    name = distance_of(result.setting)
    return Attempt(
        attack=result.setting.name,
        setting=result.setting.label,
        threat_model=result.threat_model.name,
        seed=result.key.seed,
        outcome=found.outcome.value,
        distance=name,
        recorded_loss=found.matching_loss,
        found=_distance(believed, delta, name),
        truth=_distance(training, delta, name),
        mean_psnr_db=None if result.score is None else result.score.mean_psnr_db,
    )


def _distance(training: DeclaredTraining, delta: Parameters, name: str) -> float:
    """Return the distance between mean gradients, ``-delta / (eta U)``, as attacks compare them."""
    per_step = -1.0 / (training.recipe.learning_rate * training.num_steps)
    simulated = scale(replay(training, training.declared()).delta, per_step)
    return float(DISTANCES[name](simulated, scale(delta, per_step)))
