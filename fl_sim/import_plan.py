"""What a person knows of updates that were recorded elsewhere: read from a TOML manifest, validated, assumptions named.

    name = "ward-7"

    [model]
    name = "task:Net"                 # or a name of `fl-sim list models`
    options = {}

    [data]
    image_shape = [1, 8, 8]
    num_classes = 10

    [training]
    learning_rate = 0.1

    [[updates]]
    round = 1
    client = 0
    before = "round-1.npz"
    after = "round-1-client-0.npz"    # or gradient = "…"
    num_examples = 16

What is left out and has a common value is assumed, and the assumption is written down; what has none is an error.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from fl_sim.errors import ConfigError
from fl_sim.options import parse_dataclass
from fl_sim.records import Algorithm, BatchOrder, DatasetSpec, LocalTraining

_FORBID = ConfigDict(extra="forbid")
_FEDSGD_RATE = 1.0
"""A gradient counts as one step of this rate; every attack divides by it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The network: a name of MODELS with its options, or ``"package.module:Net"`` with its arguments."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownData:
    """Public facts of the data.

    Attributes:
        image_shape: (C, H, W).
        num_classes: K.
        mean: Of each channel in pixel units [0, 1], as the network's input was normalised; ``None``: nobody knows.
        std: Likewise.
        class_names: ``None``: numbers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTraining:
    """What is known of local training; ``None``: nobody knows.

    Attributes:
        learning_rate: eta.
        epochs: E.
        batch_size: m, or ``"all"`` for all of the client's images in one step.
        momentum: Of SGD.
        order: ``"random"`` or ``"static"``.
        loss: Only the mean cross-entropy can be followed.
        optimizer: Only SGD can be followed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | Literal["all"] | None = None
    momentum: float | None = None
    order: BatchOrder | None = None
    loss: Literal["cross_entropy"] | None = None
    optimizer: Literal["sgd"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownUpdate:
    """One update.

    Attributes:
        before: File of the weights that the client was sent.
        after: File of the weights that it sent back, or ``None`` beside a gradient.
        gradient: File of the mean gradient over all of the client's images, or ``None``.
        num_examples: N_c, or ``"estimate"`` where nobody knows: the update itself is asked.
        round: The round, >= 1.
        client: The client's number, >= 0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    before: Path
    after: Path | None = None
    gradient: Path | None = None
    num_examples: int | Literal["estimate"]
    round: int = 1
    client: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if (self.after is None) == (self.gradient is None):
            raise ValueError("expected one of 'after' (weights) and 'gradient', got both or none")
        if self.round < 1:
            raise ValueError(f"round must be >= 1, got {self.round}")
        if self.client < 0:
            raise ValueError(f"client must be >= 0, got {self.client}")
        if isinstance(self.num_examples, int) and self.num_examples < 1:
            raise ValueError(f"num_examples must be >= 1 or 'estimate', got {self.num_examples}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """All that is known.

    Attributes:
        model: The network.
        data: Public facts of the data.
        training: What is known of local training.
        updates: The files.
        name: Becomes part of the run folder's name.
        truth: File with the private images, for scoring; ``None``: unscored.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    model: KnownModel
    data: KnownData
    training: KnownTraining = field(default_factory=KnownTraining)
    updates: tuple[KnownUpdate, ...]
    name: str = "import"
    truth: Path | None = None

    def __post_init__(self) -> None:
        """Refuse updates that cannot stand in one recording."""
        if not self.updates:
            raise ValueError("updates: expected at least one, got none")
        seen: set[tuple[int, int]] = set()
        before: dict[int, Path] = {}
        for update in self.updates:
            if (update.round, update.client) in seen:
                raise ValueError(f"updates: round {update.round} has two of client {update.client}; number them apart")
            seen.add((update.round, update.client))
            if before.setdefault(update.round, update.before) != update.before:
                raise ValueError(
                    f"updates: expected one file of weights before round {update.round}, which all clients were sent, "
                    f"got {before[update.round]} and {update.before}; give them different rounds"
                )
        if len({update.gradient is None for update in self.updates}) > 1:
            raise ValueError("updates: expected all to be weights or all gradients, got both; import them apart")

    @property
    def algorithm(self) -> Algorithm:
        """What the files hold."""
        return Algorithm.FEDAVG if self.updates[0].gradient is None else Algorithm.FEDSGD


def read_plan(path: Path) -> ImportPlan:
    """Read a manifest; relative paths in it start at its folder.

    Raises:
        ConfigError: If it cannot be read or anything in it does not fit.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"manifest {str(path)!r} does not exist; docs/own-federation.md shows one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"manifest {str(path)!r} cannot be read as TOML: {error}") from error
    return parse_plan(data, base=path.resolve().parent)


def parse_plan(data: Mapping[str, Any], *, base: Path) -> ImportPlan:
    """Validate plain data.

    Args:
        data: As read from TOML, or put together from a command line.
        base: Where relative paths start.

    Raises:
        ConfigError: With the dotted name of the first key that does not fit.
    """
    plan = parse_dataclass(ImportPlan, data)

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    updates = tuple(
        KnownUpdate(
            before=base / update.before.expanduser(),
            after=absolute(update.after),
            gradient=absolute(update.gradient),
            num_examples=update.num_examples,
            round=update.round,
            client=update.client,
        )
        for update in plan.updates
    )
    return ImportPlan(
        model=plan.model,
        data=plan.data,
        training=plan.training,
        updates=updates,
        name=plan.name,
        truth=absolute(plan.truth),
    )


def settle_data(known: KnownData) -> tuple[DatasetSpec, tuple[str, ...]]:
    """Return the public facts, and what had to be assumed."""
    channels = max(known.image_shape[0], 0)
    assumed: list[str] = []
    if known.mean is None and known.std is None:
        assumed.append("the network was fed pixels in [0, 1] as they are (no mean and std were given)")
    elif known.mean is None or known.std is None:
        raise ConfigError("data: expected mean and std, or neither; got one of them")
    names = known.class_names or tuple(map(str, range(known.num_classes)))
    spec = DatasetSpec(
        image_shape=known.image_shape,
        num_classes=known.num_classes,
        mean=known.mean or (0.0,) * channels,
        std=known.std or (1.0,) * channels,
        class_names=names,
    )
    return spec, tuple(assumed)


def settle_training(known: KnownTraining, algorithm: Algorithm) -> tuple[LocalTraining, tuple[str, ...]]:
    """Return the recipe of local training, and what had to be assumed.

    Raises:
        ConfigError: If the learning rate of trained weights is unknown, a number is out of range, or local steps are
            given for a gradient.
    """
    assumed: list[str] = []
    if known.loss is None:
        assumed.append("the loss was the mean cross-entropy over a batch")
    if algorithm is Algorithm.FEDSGD:
        if (known.epochs or 1, known.batch_size or "all", known.momentum or 0) != (1, "all", 0):
            raise ConfigError(
                "training: a gradient is that of one step on all images: leave out epochs, batch_size and momentum, "
                "or give the weights after training in place of the gradient"
            )
        return _recipe(learning_rate=known.learning_rate or _FEDSGD_RATE), tuple(assumed)
    if known.learning_rate is None:
        raise ConfigError(
            "training.learning_rate is required where weights are given: without it no update can be turned into a "
            "gradient; a server usually hands it out"
        )
    if known.optimizer is None:
        assumed.append("clients trained with plain SGD")
    if known.epochs is None:
        assumed.append("one local epoch (E = 1)")
    if known.batch_size is None:
        assumed.append("all of a client's images in one step (m = N_c)")
    if known.momentum is None:
        assumed.append("no momentum")
    if known.order is None and known.batch_size not in (None, "all"):
        assumed.append("images shuffled before each epoch")
    recipe = _recipe(
        epochs=known.epochs or 1,
        batch_size=None if known.batch_size == "all" else known.batch_size,
        learning_rate=known.learning_rate,
        momentum=known.momentum or 0.0,
        order=known.order or "random",
    )
    return recipe, tuple(assumed)


def _recipe(**settings: Any) -> LocalTraining:
    try:
        return LocalTraining(**settings)
    except ValueError as error:
        raise ConfigError(f"training: {error}") from error
