"""What each table of the FedAvg-leakage paper varies. Table 5 describes the networks, Table 11 the authors' run time.

Local training is that of the paper throughout: eta = 0.004, no momentum, N_c = 50.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_sim.config import DefenseConfig
from fl_sim.errors import ConfigError
from fl_sim.records import BatchOrder, LocalTraining
from reproduction.methods import FEDAVG_METHODS, LABEL_METHODS, PAPER_METHODS, RECOVERING_METHODS, Method, epoch_priors

NUM_IMAGES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting of the federation.

    Attributes:
        name: Key of the paper's cells, and what the command line calls it.
        training: E, m, eta and the batch order.
        server_round: The round whose updates are attacked; the federation ends with it.
        defenses: The clients' chain of defenses.
        batches_known: Grants the label counts of every local batch to the methods to which they make a difference.
        cohort: Clients whose mean update is attacked.
        assumed_epochs: The E that the attacker takes for true, with U and N_c known; ``None`` grants E and m.
    """

    name: str
    training: LocalTraining
    server_round: int = 1
    defenses: tuple[DefenseConfig, ...] = ()
    batches_known: bool = False
    cohort: int = 1
    assumed_epochs: int | None = None

    @property
    def title(self) -> str:
        """What stands before the row."""
        name = "1 client" if self.name == "1 clients" else self.name  # the paper's cells are named alike
        return re.sub(r"^E(\d+)_m(\d+)$", r"E = \1, m = \2", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """One table.

    Attributes:
        number: The paper's.
        title: What it compares.
        rows: By name.
        methods: The columns, for the paper's data set.
        default_methods: Those that are measured unless others are named.
        threat_model: A name of THREAT_MODELS.
        options: Hyper-parameters that every method gets, unless it has its own.
        measures: Images, or label counts alone.
        remark: What else must stand beside the numbers.
        data: The paper's data sets that it has cells for.
    """

    number: int
    title: str
    rows: tuple[Row, ...]
    methods: Callable[[str], Mapping[str, Method]] = lambda _: FEDAVG_METHODS
    default_methods: tuple[str, ...] = PAPER_METHODS
    threat_model: str = "known_label_counts"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    measures: Literal["images", "labels"] = "images"
    data: tuple[str, ...] = ("femnist", "cifar100")
    remark: str = ""

    @property
    def name(self) -> str:
        """How the command line calls it."""
        return f"table{self.number}"


def training(epochs: int, batch_size: int, order: BatchOrder = "random") -> LocalTraining:
    """Return the paper's local training with these E and m."""
    return LocalTraining(epochs=epochs, batch_size=batch_size, learning_rate=0.004, order=order)


_SETTINGS = tuple(
    Row(name=f"E{epochs}_m{batch_size}", training=training(epochs, batch_size))
    for epochs, batch_size in ((1, 5), (5, 5), (10, 10), (10, 5), (10, 1))
)
_STANDARD = training(10, 5)
_DEFENSES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Gaussian Noise, σ = 0.01", "gaussian_noise", {"stddev": 0.01}),
    ("Gaussian Noise, σ = 0.03", "gaussian_noise", {"stddev": 0.03}),
    ("Laplacian Noise, σ = 0.01", "laplace_noise", {"scale": 0.01}),
    ("Laplacian Noise, σ = 0.02", "laplace_noise", {"scale": 0.02}),
    ("Random Pruning, p = 0.2", "random_pruning", {"probability": 0.2}),
    ("Random Pruning, p = 0.5", "random_pruning", {"probability": 0.5}),
)
# The released code defends the gradient of every example in every local step.
_PLACE = {"where": "example"}
_ORDERS: tuple[tuple[str, BatchOrder], ...] = (("random", "random"), ("same", "static"))

TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        PaperTable(number=1, title="label counts known", rows=_SETTINGS),
        PaperTable(
            number=2,
            title="wrong labels of 50 in the recovered counts",
            rows=_SETTINGS,
            methods=lambda _: LABEL_METHODS,
            default_methods=tuple(LABEL_METHODS),
            threat_model="honest_but_curious",
            measures="labels",
        ),
        PaperTable(
            number=3,
            title="label counts recovered from the update, by interpolation as in the paper",
            rows=_SETTINGS,
            methods=lambda _: RECOVERING_METHODS,
            threat_model="honest_but_curious",
            options={"label_recovery": "interpolated"},
        ),
        PaperTable(
            number=4,
            title="epoch order-invariant priors",
            rows=(Row(name="E10_m5", training=_STANDARD),),
            methods=epoch_priors,
            default_methods=tuple(epoch_priors("femnist")),
        ),
        PaperTable(
            number=6,
            title="defenses on the client, unknown to the attacker",
            rows=(
                Row(name="No Defense", training=_STANDARD),
                *(
                    Row(
                        name=name,
                        training=_STANDARD,
                        defenses=(DefenseConfig(name=defense, options={**options, **_PLACE}),),
                    )
                    for name, defense, options in _DEFENSES
                ),
            ),
            data=("femnist",),
            remark="Noise is added to, and pruning done on, the gradient of every example in every local step, as in "
            "the released code; ours is drawn anew for each of them, where the released code repeats its noise in "
            "every epoch, so that it adds up to 3.2 times as much in the update. What a defense costs in accuracy is "
            "not measured here: see fl-sim defend.",
        ),
        PaperTable(
            number=7,
            title="networks after some rounds of training",
            rows=tuple(Row(name=f"round {r}", training=_STANDARD, server_round=r) for r in (1, 6, 11)),
            data=("femnist",),
        ),
        PaperTable(
            number=8,
            title="label counts per batch known or not, batches drawn anew in every epoch or not",
            rows=tuple(
                Row(
                    name=f"counts per {'batch' if known else 'epoch'} known, {name} batches",
                    training=training(10, 5, order),
                    batches_known=known,
                )
                for known in (True, False)
                for name, order in _ORDERS
            ),
            data=("femnist",),
        ),
        PaperTable(
            number=9,
            title="a wrong E and m, the number of local steps known; the client has E=5, m=5",
            rows=tuple(
                Row(
                    name=f"attacker E={epochs}", training=training(5, 5), assumed_epochs=None if epochs == 5 else epochs
                )
                for epochs in (5, 10, 25, 50)
            ),
            data=("femnist",),
        ),
        PaperTable(
            number=10,
            title="the mean update of several clients, label counts of each client known",
            rows=tuple(Row(name=f"{cohort} clients", training=_STANDARD, cohort=cohort) for cohort in (1, 2, 4)),
            data=("femnist",),
        ),
    )
}


def find_table(name: str) -> PaperTable:
    """Return a table by name.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return TABLES[name]
    except KeyError:
        known = ", ".join(TABLES)
        raise ConfigError(
            f"unknown table {name!r}; known: {known}. Table 5 describes the networks (fl-sim list models: femnist_cnn, "
            "cifar_cnn with paper_table5), Table 11 is the authors' run time"
        ) from None
