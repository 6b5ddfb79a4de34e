"""The experiment's list of defenses as one value, checked: each link built, placed, and able to work with the model."""

from clients.defenses import DEFENSES, PLACES, ClientDefenses, Defense, GradientDefense, Place, arrange
from clients.defenses.defense import PrivateGradientDefense
from fl_sim.config import DefenseConfig, Experiment
from fl_sim.errors import ConfigError
from fl_sim.options import build

PLACE_OPTION = "where"


def build_defenses(experiment: Experiment) -> ClientDefenses:
    """Build every defense of an experiment and put it where it acts.

    Raises:
        ConfigError: For an unknown defense, a hyper-parameter that does not fit, or an order in which a client cannot
            apply them.
    """
    defenses = arrange(
        [_build_link(link, where=f"defenses.{position}.options") for position, link in enumerate(experiment.defenses)]
    )
    if draws_batches_at_random(defenses) and experiment.training.order == "static":
        raise ConfigError(
            "training.order = 'static' keeps the batches that sampling = 'poisson' draws anew: leave out one of the two"
        )
    return defenses


def draws_batches_at_random(defenses: ClientDefenses) -> bool:
    """Say whether batches are sampled, image by image, instead of dealt out once in an epoch."""
    return isinstance(defenses.source, PrivateGradientDefense) and defenses.source.samples_batches


def _build_link(link: DefenseConfig, *, where: str) -> tuple[Place, Defense] | GradientDefense:
    options = dict(link.options)
    place = options.pop(PLACE_OPTION, None)
    defense = build(DEFENSES[link.name], options, where=where)
    if isinstance(defense, GradientDefense):
        if place is not None:
            raise ConfigError(
                f"{where}: {link.name} computes the gradient of each local step: leave out {PLACE_OPTION!r}"
            )
        return defense
    if not callable(defense):
        raise ConfigError(
            f"{where}: {link.name} is no defense: expected a value that is called with the update, or one with "
            f"check_model and gradient; got {type(defense).__name__}"
        )
    if place is None:
        return "update", defense
    if place not in PLACES:
        raise ConfigError(f"{where}.{PLACE_OPTION}: expected one of {', '.join(PLACES)}; got {place!r}")
    return place, defense
