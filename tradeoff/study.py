"""What is compared: an experiment file with a section ``[defend]``.

    [defend]
    seeds = [0, 1]                            # of the federation; each is trained and attacked anew

    [[defend.defenses]]
    name = "gaussian_noise"
    strengths = { stddev = [0.001, 0.01] }    # one arm each
    options = { where = "update" }            # the same in each

    [[defend.defenses]]
    label = "clip, then noise"                # several defenses as one arm
    chain = [
        { name = "clipping", options = { clip_norm = 1.0 } },
        { name = "gaussian_noise", options = { stddev = 0.01 } },
    ]

    [[defend.attacks]]
    name = "inverting_gradients"              # whatever is not said here is as in the section [attack]
    label = "cosine"                          # what the tables call it; default: the name

    [defend.published]                        # what somebody else measured, shown in brackets beside ours
    source = "Table 6 of …"
    [[defend.published.numbers]]
    defense = "gaussian_noise, stddev = 0.01" # as the tables call it
    accuracy_percent = 68.9
    attacks = { cosine = [18.3, 25.0] }       # PSNR in dB, percent of the images recovered

The experiment's own ``[[defenses]]`` stand before every arm's; the arm without any further defense comes first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from fl_sim.config import (
    AttackConfig,
    DefenseConfig,
    Experiment,
    parse_experiment,
    read_settings,
)
from fl_sim.errors import ConfigError
from fl_sim.options import parse_dataclass

NO_DEFENSE = "no defense"
_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseSweep:
    """One entry of ``[[defend.defenses]]``: a defense at several strengths, or a chain as it is.

    Attributes:
        name: A name of DEFENSES.
        strengths: One hyper-parameter and its values, the weakest first.
        options: The other hyper-parameters.
        chain: Several defenses in their order, in place of a name.
        label: What the tables call it; default: the name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str | None = None
    strengths: dict[str, tuple[int | float, ...]] = field(default_factory=dict[str, tuple[int | float, ...]])
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    chain: tuple[DefenseConfig, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        """Check that it is one of the two."""
        if (self.name is None) == (not self.chain):
            raise ValueError(f"expected either a name or a chain, got name {self.name!r} and {len(self.chain)} links")
        if self.chain and (self.strengths or self.options):
            raise ValueError("a chain takes its options in its links; leave out strengths and options")
        if self.chain and self.label is None:
            raise ValueError("a chain needs a label")
        if len(self.strengths) > 1:
            raise ValueError(f"strengths: expected one hyper-parameter, got {', '.join(self.strengths)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedNumbers:
    """What somebody else measured under one defense.

    Attributes:
        defense: Label of the arm.
        accuracy_percent: Test accuracy.
        attacks: PSNR in dB and percent of recovered images, by title of the attack.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    defense: str
    accuracy_percent: float | None = None
    attacks: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """What somebody else measured, to stand beside ours.

    Attributes:
        source: Who, where, and in which setting as far as it differs.
        numbers: By arm.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    source: str
    numbers: tuple[PublishedNumbers, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefendConfig:
    """The section ``[defend]``.

    Attributes:
        defenses: What is compared with no defense.
        attacks: The attacks on each arm; default: the experiment's.
        seeds: Seeds of the federation: of its partition, its first weights and its batches.
        published: Numbers to compare with.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    defenses: tuple[DefenseSweep, ...] = ()
    attacks: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0,)
    published: PublishedTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One line of the matrix.

    Attributes:
        family: The defense; arms of one family differ in strength.
        strength: The value that is swept; ``None`` where nothing is.
        parameter: Its name.
        defenses: The clients' chain.
    """

    family: str
    strength: float | None = None
    parameter: str = ""
    defenses: tuple[DefenseConfig, ...] = ()

    @property
    def label(self) -> str:
        """What the tables call it."""
        return self.family if self.strength is None else f"{self.family}, {self.parameter} = {self.strength:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAttack:
    """One column of the matrix.

    Attributes:
        title: What the tables call it.
        config: The attack.
    """

    title: str
    config: AttackConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that is compared.

    Attributes:
        experiment: What all arms share; its attack names the rounds and clients.
        arms: The first one is without defense.
        attacks: On each arm.
        seeds: Of the federation.
        published: Numbers to compare with.
    """

    experiment: Experiment
    arms: tuple[Arm, ...]
    attacks: tuple[StudyAttack, ...]
    seeds: tuple[int, ...]
    published: PublishedTable | None = None

    def federation(self, arm: Arm, seed: int) -> Experiment:
        """Return the experiment of one federation; with one seed all arms hold the same private images."""
        return replace(self.experiment, seed=seed, defenses=(*self.experiment.defenses, *arm.defenses))

    def published_for(self, arm: Arm) -> PublishedNumbers | None:
        """Return what somebody else measured under the defense of an arm."""
        numbers = () if self.published is None else self.published.numbers
        return next((own for own in numbers if own.defense == arm.label), None)


def read_study(path: Path, overrides: Iterable[str] = ()) -> Study:
    """Read an experiment file with its section ``[defend]``.

    Raises:
        ConfigError: If the file cannot be read, the section is missing, or anything does not fit.
    """
    settings = read_settings(path, overrides)
    section = settings.pop("defend", None)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: expected a section [defend] with [[defend.defenses]]; see experiments/defend.toml")
    try:
        config = parse_dataclass(DefendConfig, section)
    except ConfigError as error:
        raise ConfigError(f"defend.{error}") from error
    if not config.defenses:
        raise ConfigError(f"{path}: expected at least one [[defend.defenses]], got none")
    if not config.seeds:
        raise ConfigError("defend.seeds must name at least one seed, got none")
    experiment = parse_experiment(settings)
    arms = (Arm(family=NO_DEFENSE), *(arm for sweep in config.defenses for arm in _arms(sweep)))
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"defend.defenses: {label!r} stands there twice; give one of them a label")
    attacks = tuple(_attack(experiment.attack, changes) for changes in config.attacks or ({},))
    titles = [attack.title for attack in attacks]
    for title in titles:
        if titles.count(title) > 1:
            raise ConfigError(f"defend.attacks: {title!r} stands there twice; give one of them a label")
    _check_published(config.published, labels, titles)
    return Study(experiment=experiment, arms=arms, attacks=attacks, seeds=config.seeds, published=config.published)


def _check_published(published: PublishedTable | None, labels: list[str], titles: list[str]) -> None:
    """Refuse numbers that would stand nowhere, or twice."""
    numbers = () if published is None else published.numbers
    named = [own.defense for own in numbers]
    for own in numbers:
        if named.count(own.defense) > 1:
            raise ConfigError(f"defend.published: {own.defense!r} stands there twice")
        for kind, names, known in (("defense", [own.defense], labels), ("attack", own.attacks, titles)):
            for name in names:
                if name not in known:
                    raise ConfigError(f"defend.published: unknown {kind} {name!r}; known: {'; '.join(known)}")


def _arms(sweep: DefenseSweep) -> Iterator[Arm]:
    if sweep.name is None:
        yield Arm(family=sweep.label or "", defenses=sweep.chain)
        return
    family = sweep.label or sweep.name
    if not sweep.strengths:
        yield Arm(family=family, defenses=(DefenseConfig(name=sweep.name, options=sweep.options),))
    for parameter, values in sweep.strengths.items():
        for value in values:
            link = DefenseConfig(name=sweep.name, options={**sweep.options, parameter: value})
            yield Arm(family=family, strength=value, parameter=parameter, defenses=(link,))


def _attack(standard: AttackConfig, changes: dict[str, Any]) -> StudyAttack:
    own, changes = asdict(standard), dict(changes)
    title = changes.pop("label", changes.get("name", standard.name))
    if changes.get("name", standard.name) != standard.name:
        own["options"] = {}  # another attack has other hyper-parameters
    try:
        return StudyAttack(title=str(title), config=parse_dataclass(AttackConfig, {**own, **changes}))
    except ConfigError as error:
        raise ConfigError(f"defend.attacks: {error}") from error
