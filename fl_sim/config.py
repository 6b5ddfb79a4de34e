"""The experiment: one frozen value, read from TOML and ``section.key=value`` overrides, validated once.

An unknown key, a wrong type or an impossible combination is a `ConfigError` before anything is written.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import ConfigDict

from fl_sim.errors import ConfigError
from fl_sim.options import parse_dataclass
from fl_sim.records import Algorithm, LocalTraining
from fl_sim.server_privacy import CentralPrivacy, SecureAggregation

Selection = Literal["all", "none"] | tuple[int, ...]
Workers = int | Literal["ray"] | None
_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images exist and who holds them.

    Attributes:
        dataset: A name of DATASETS.
        options: Arguments of that data set's loader.
        partition: A name of PARTITIONERS.
        partition_options: Arguments of that partitioner.
        num_clients: Number of clients.
        examples_per_client: N_c at most; ``None`` gives each client all of its share.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    dataset: str = "digits"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    partition: str = "iid"
    partition_options: dict[str, Any] = field(default_factory=dict[str, Any])
    num_clients: int = 4
    examples_per_client: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_clients < 1:
            raise ValueError(f"num_clients must be >= 1, got {self.num_clients}")
        if self.examples_per_client is not None and self.examples_per_client < 1:
            raise ValueError(f"examples_per_client must be >= 1, got {self.examples_per_client}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The architecture: a name of MODELS and the arguments of its factory."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str = "femnist_cnn"
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig:
    """The server's side of training.

    Attributes:
        algorithm: ``fedavg`` or ``fedsgd``.
        num_rounds: Rounds of training.
        clients_per_round: Clients drawn each round; ``None`` takes all.
        min_replies: Usable replies without which a round leaves the global model as it was.
        reply_timeout: Seconds to wait for the replies of a round; covers the engine's start as well.
        central_privacy: Central differential privacy, or ``None`` for none.
        secure_aggregation: SecAgg+, or ``None`` where the server sees every update.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    algorithm: Algorithm = Algorithm.FEDAVG
    num_rounds: int = 3
    clients_per_round: int | None = None
    min_replies: int = 1
    reply_timeout: float = 600.0
    central_privacy: CentralPrivacy | None = None
    secure_aggregation: SecureAggregation | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_rounds", "min_replies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.clients_per_round is not None and self.clients_per_round < 1:
            raise ValueError(f"clients_per_round must be >= 1, got {self.clients_per_round}")
        if self.reply_timeout <= 0:
            raise ValueError(f"reply_timeout must be > 0 seconds, got {self.reply_timeout}")
        if self.central_privacy is not None and self.secure_aggregation is not None:
            raise ValueError(
                "central_privacy clips single updates, which secure_aggregation hides: leave out one of the two; "
                "defenses 'clipping' and 'gaussian_noise' act on the clients' side of secure aggregation"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseConfig:
    """One link of the clients' chain of defenses: a name of DEFENSES and its hyper-parameters.

    Attributes:
        name: A name of DEFENSES.
        options: Hyper-parameters of that defense, and ``where`` it acts: ``"update"`` (the default), ``"step"`` or
            ``"example"``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Refuse what the recording, which announces the defenses as JSON, cannot say."""
        for name, value in self.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"options.{name} must be a finite number, got {value}; for no limit take a very large one"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """What the eavesdropper keeps: ``"all"``, ``"none"`` or a list of rounds (from 1) and of client ids (from 0)."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    rounds: Selection = "all"
    clients: Selection = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackConfig:
    """The attack that `fl-sim run` starts on the recording.

    Attributes:
        name: A name of ATTACKS.
        options: Hyper-parameters of that attack.
        threat_model: A name of THREAT_MODELS.
        rounds: The rounds to attack.
        clients: The clients to attack.
        seeds: One attack per seed.
        cohort: Attacks the mean of so many clients' updates at a time, as if the server saw nothing else.
        mean_of_rounds: Attacks the mean of a client's last so many recorded replies, up to each of the rounds: noise
            averages out where the client's data stay the same.
        workers: Processes, each with one torch thread; ``None`` takes one per core, or what shares the GPU; ``"ray"``
            spreads the attacks over a Ray cluster (RAY_ADDRESS), or over this machine.
        gpu_share: Of a GPU, for each attack, where there is one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str = "automatic"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    threat_model: str = "honest_but_curious"
    rounds: Selection = "all"
    clients: Selection = "all"
    seeds: tuple[int, ...] = (0,)
    cohort: int = 1
    mean_of_rounds: int = 1
    workers: Workers = None
    gpu_share: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError(f"workers must be >= 1 or 'ray', got {self.workers}")
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"gpu_share must be in (0, 1], got {self.gpu_share}")
        if self.cohort < 1:
            raise ValueError(f"cohort must be >= 1, got {self.cohort}")
        if self.mean_of_rounds < 1:
            raise ValueError(f"mean_of_rounds must be >= 1, got {self.mean_of_rounds}")
        if self.mean_of_rounds > 1 and self.cohort > 1:
            raise ValueError(
                f"mean_of_rounds is for single clients: expected it to be 1 beside cohort = {self.cohort}, "
                f"got {self.mean_of_rounds}"
            )
        if not self.seeds:
            raise ValueError("seeds must name at least one seed, got none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """How reconstructions are judged.

    Attributes:
        recovered_threshold_db: An image counts as recovered above this PSNR.
        alexnet_weights: File with AlexNet's ``features.*`` tensors for LPIPS, which is left out without it.
        feature_extractor: What tells images apart for the image identifiability precision: ``efficientnet_lite0``,
            ``alexnet``, ``pixels`` or ``"package.module:factory"``; ``None`` takes the first network whose weights are
            there, and leaves the metric out where none are.
        efficientnet_weights: File with the state dict of EfficientNet-Lite0 for 1000 classes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    recovered_threshold_db: float = 20.0
    alexnet_weights: str | None = None
    feature_extractor: str | None = None
    efficientnet_weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A complete experiment; every field has a default that works.

    Attributes:
        name: Becomes part of the run folder's name.
        seed: The run seed, from which every random draw of the federation is derived.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str = "digits"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    training: LocalTraining = field(default_factory=LocalTraining)
    defenses: tuple[DefenseConfig, ...] = ()
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    def __post_init__(self) -> None:
        """Refuse impossible combinations."""
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise ValueError(f"name must be letters, digits, '-', '_' or '.', got {self.name!r}")
        per_round = self.federation.clients_per_round
        if per_round is not None and per_round > self.data.num_clients:
            raise ValueError(
                f"federation.clients_per_round must be <= data.num_clients = {self.data.num_clients}, got {per_round}"
            )
        if self.federation.min_replies > (per_round or self.data.num_clients):
            raise ValueError(
                f"federation.min_replies must be <= the {per_round or self.data.num_clients} clients of a round, "
                f"got {self.federation.min_replies}"
            )
        if self.federation.algorithm is Algorithm.FEDSGD and (self.training.epochs, self.training.batch_size) != (
            1,
            None,
        ):
            raise ValueError(
                "federation.algorithm 'fedsgd' sends one full-batch gradient: leave out training.epochs and "
                f"training.batch_size, got {self.training.epochs} and {self.training.batch_size}"
            )
        if self.federation.algorithm is Algorithm.FEDSGD and self.training.momentum:
            raise ValueError(f"training.momentum needs algorithm 'fedavg', got {self.training.momentum} with 'fedsgd'")
        secure = self.federation.secure_aggregation
        num_clients = per_round or self.data.num_clients
        if secure is not None and not 2 <= num_clients <= secure.max_clients:
            raise ValueError(
                f"federation.secure_aggregation needs 2 to {secure.max_clients} clients in a round "
                f"(modulus_range / quantization_range), got {num_clients}"
            )
        if secure is not None and secure.reconstruction_threshold > num_clients:
            raise ValueError(
                "federation.secure_aggregation.reconstruction_threshold must be <= the "
                f"{num_clients} clients of a round, got {secure.reconstruction_threshold}"
            )
        if secure is not None and self.attack.clients != "all":
            raise ValueError(
                "attack.clients must be 'all' under federation.secure_aggregation, which leaves the mean of all "
                f"clients of a round, got {self.attack.clients}"
            )

    def secure_aggregation(self) -> SecureAggregation | None:
        """Return the agreed numbers of secure aggregation, with ``max_weight`` filled in, or ``None`` without it."""
        secure = self.federation.secure_aggregation
        return None if secure is None else secure.with_max_weight(self.data.examples_per_client)


def read_experiment(path: Path | None, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file, apply ``section.key=value`` overrides, and validate it.

    Args:
        path: A TOML file; ``None`` starts from the defaults.
        overrides: Assignments; values are TOML (``5``, ``0.1``, ``true``, ``[1, 3]``), bare words are strings.

    Raises:
        ConfigError: If the file cannot be read or anything in it does not fit.
    """
    settings = read_settings(path, overrides)
    if "defend" in settings:
        raise ConfigError(f"{path}: [defend] makes this a study of several federations; run 'fl-sim defend {path}'")
    return parse_experiment(settings)


def read_settings(path: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read an experiment file as plain data, overrides applied, not yet validated.

    Raises:
        ConfigError: If the file cannot be read.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"experiment file {str(path)!r} does not exist; see experiments/ for examples") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"experiment file {str(path)!r} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError as well
            raise ConfigError(f"experiment file {str(path)!r} is not valid TOML: {error}") from error
    for override in overrides:
        _assign(data, *split_assignment(override))
    return data


def parse_experiment(data: Mapping[str, Any]) -> Experiment:
    """Validate plain data, as read from TOML or JSON.

    Raises:
        ConfigError: With the dotted name of the first key that does not fit.
    """
    return parse_dataclass(Experiment, data)


def parse_data(data: Mapping[str, Any]) -> DataConfig:
    """Validate a section ``data`` that stands alone, as in the reference to the truth.

    Raises:
        ConfigError: With the dotted name of the first key that does not fit.
    """
    return parse_dataclass(DataConfig, data)


def split_assignment(assignment: str) -> tuple[str, Any]:
    """Split ``key=value`` and read the value as TOML, or as a bare string where it is none.

    Raises:
        ConfigError: If there is no ``=`` or no key.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected 'section.key=value', got {assignment!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as plain data without ``None``, which TOML cannot say; inverse of `parse_experiment`."""
    return _without_none(asdict(experiment))


def is_selected(selection: Selection, number: int) -> bool:
    """Say whether a round or a client is in a selection."""
    return selection == "all" or (selection != "none" and number in selection)


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections):
        inner: Any = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {'.'.join(sections[: depth + 1])!r} is a value, not a section")
        data = cast(dict[str, Any], inner)
    data[name] = value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
