"""All that an attack may look at.

    ThreatModel.observe(...)  ->  Observation  ->  attack

The type of an attack's input *is* the threat model: what is not granted is ``None`` in `Knowledge`, and there is no
other way to it. An attack that needs a missing piece raises `NotGrantedError` with the name of the piece.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from attacker.batch_norm import Statistics
from fl_sim.parameters import scale, weighted_mean
from fl_sim.records import (
    AggregatedUpdate,
    Algorithm,
    ClientUpdate,
    DatasetSpec,
    DeclaredDefense,
    LocalTraining,
    RoundRecord,
)

Piece = TypeVar("Piece")

_PIECES = (
    "num_examples",
    "local_training",
    "local_steps",
    "client_buffers",
    "label_counts",
    "batch_label_counts",
    "batch_statistics",
    "defenses",
)


class NotGrantedError(Exception):
    """The attack needs knowledge that the threat model does not grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """What the attacker is granted beyond the weights and the update.

    Attributes:
        name: The name under which results are reported.
        description: One sentence for tables and the report.
        realistic: True if an honest-but-curious server really has all of it; False marks an upper bound.
        num_examples: N_c is known (clients send it in clear, as the weight of their update).
        local_training: E, m, eta and momentum are known (the server hands them out).
        local_steps: U, eta and momentum are known, which go without saying where ``local_training`` is granted.
        client_buffers: BatchNorm statistics of the reply are seen.
        label_counts: The client's true label counts are given, instead of being recovered.
        batch_label_counts: The true label counts of every local step are given.
        batch_statistics: Mean and variance that the BatchNorm layers see of the whole private batch at w_t are given.
        defenses: The clients' defenses are known, as the app that the server hands out names them.
    """

    name: str
    description: str
    realistic: bool
    num_examples: bool = True
    local_training: bool = True
    local_steps: bool = False
    client_buffers: bool = True
    label_counts: bool = False
    batch_label_counts: bool = False
    batch_statistics: bool = False
    defenses: bool = False

    def granted(self) -> tuple[str, ...]:
        """Return the names of the pieces of knowledge that are granted."""
        return tuple(piece for piece in _PIECES if getattr(self, piece))

    def observe(
        self,
        *,
        model: nn.Module,
        dataset: DatasetSpec,
        record: RoundRecord,
        update: ClientUpdate | AggregatedUpdate,
        others: Sequence[ClientUpdate] = (),
        earlier: Sequence[tuple[RoundRecord, ClientUpdate]] = (),
        local_training: LocalTraining,
        label_counts: Tensor | None = None,
        batch_label_counts: Tensor | None = None,
        batch_statistics: Statistics | None = None,
        defenses: Sequence[DeclaredDefense] = (),
    ) -> "Observation":
        """Build an attack's input from a recorded update.

        Args:
            model: The architecture; its weights are ignored, w_t is taken from the record.
            dataset: Public facts of the data.
            record: The round.
            update: The reply under attack, one of ``record.updates``; or ``record.aggregate``, the mean of several.
            others: Further replies, of which the server sees the mean only, weighted by N_c, with this one; none beside
                an aggregate.
            earlier: Earlier rounds with the same client's replies in them, to be looked at as one mean with this one:
                noise averages out, and w_t becomes the mean of the weights that were sent out. Taken to be replies
                with the same data; the smaller the steps of the global model in between, the less is lost.
            local_training: The recipe that the server handed out.
            label_counts: True counts, shape (K,), or (clients, K) with others; used only where this threat model grants
                them.
            batch_label_counts: True counts of every local step, shape (U, K); used only where granted.
            batch_statistics: Of the private batch at w_t, by BatchNorm layer; likewise.
            defenses: What the clients declare, in its order; used only where granted.

        Raises:
            ValueError: If a piece of the truth is granted but absent, or makes no sense of several clients.
        """
        updates = (update, *others)
        sizes = [size for reply in updates for size in _sizes(reply)]
        if others and any(isinstance(reply, AggregatedUpdate) for reply in updates):
            raise ValueError("an aggregate is a mean already: expected no other replies beside it")
        several = len(sizes) > 1
        if several and (self.local_steps or self.batch_label_counts or self.batch_statistics):
            raise ValueError(f"threat model {self.name!r} is for single clients, and several replies were given")
        _check_earlier(update, others, earlier)
        if earlier and (self.batch_label_counts or self.batch_statistics):
            raise ValueError(f"threat model {self.name!r} is for single rounds, and several were given")
        given = {
            "label_counts": label_counts,
            "batch_label_counts": batch_label_counts,
            "batch_statistics": batch_statistics,
        }
        for name, piece in given.items():
            if getattr(self, name) and piece is None:
                raise ValueError(f"threat model {self.name!r} grants {name}, but none were given")
        delta = weighted_mean(
            [reply.delta(record.global_parameters, local_training.learning_rate) for reply in updates],
            [sum(_sizes(reply)) for reply in updates],
        )
        before = [reply.delta(past.global_parameters, local_training.learning_rate) for past, reply in earlier]
        sent_out = [past.global_parameters for past, _ in earlier]
        rounds = [1.0] * (1 + len(earlier))
        return Observation(
            model=model,
            dataset=dataset,
            algorithm=update.algorithm,
            global_parameters=weighted_mean([record.global_parameters, *sent_out], rounds),
            global_buffers=record.global_buffers,
            delta=weighted_mean([delta, *before], rounds),
            knowledge=Knowledge(
                num_examples=sum(sizes) if self.num_examples else None,
                cohort=tuple(sizes) if several and self.num_examples else None,
                local_training=local_training if self.local_training else None,
                local_steps=LocalSteps.of(local_training, sizes[0]) if self.local_steps else None,
                client_buffers=update.buffers if self.client_buffers and not several else None,
                label_counts=label_counts if self.label_counts else None,
                batch_label_counts=batch_label_counts if self.batch_label_counts else None,
                batch_statistics=batch_statistics if self.batch_statistics else None,
                defenses=tuple(defenses) if self.defenses else None,
            ),
            num_rounds=len(rounds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps:
    """What a server must know of local training to weight an update, and no more.

    Attributes:
        num_steps: U, the client's local steps.
        learning_rate: eta.
        momentum: Of local SGD.
    """

    num_steps: int
    learning_rate: float
    momentum: float = 0.0

    @classmethod
    def of(cls, recipe: LocalTraining, num_examples: int) -> "LocalSteps":
        """Return what a recipe comes down to for a client with N_c images."""
        return cls(num_steps=recipe.steps(num_examples), learning_rate=recipe.learning_rate, momentum=recipe.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """The granted pieces; ``None`` where the threat model withholds one.

    Attributes:
        num_examples: N_c; of all clients together where the update is a mean over several.
        cohort: N_c of each client where the update is a mean over several, weighted by these; ``None`` for one client.
        local_training: E, m, eta, momentum. Never which image stands in which batch, which is the client's own draw.
        local_steps: U, eta, momentum, where they are granted without E and m.
        client_buffers: Non-trainable tensors of the reply, by name.
        label_counts: Images of each class, shape (K,), integers that sum to N_c; (clients, K) for a cohort.
        batch_label_counts: Images of each class in the batch of each local step, shape (U, K), integers.
        batch_statistics: Of the whole private batch at w_t, by BatchNorm layer; empty for a model without such layers.
        defenses: The clients' chain, in its order; empty where they declare none.
    """

    num_examples: int | None = None
    cohort: tuple[int, ...] | None = None
    local_training: LocalTraining | None = None
    local_steps: LocalSteps | None = None
    client_buffers: Mapping[str, Tensor] | None = None
    label_counts: Tensor | None = None
    batch_label_counts: Tensor | None = None
    batch_statistics: Statistics | None = None
    defenses: tuple[DeclaredDefense, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The only input of an attack.

    Attributes:
        model: The architecture. Call it functionally with ``global_parameters`` and ``global_buffers``; images go in as
            pixels in [0, 1], shape (N, C, H, W), and logits (N, K) come out. Normalisation is a layer of it.
        dataset: Public facts of the data.
        algorithm: FedSGD or FedAvg.
        global_parameters: w_t; its mean where several rounds are looked at as one.
        global_buffers: The buffers sent out with w_t.
        delta: w_c - w_t; likewise.
        knowledge: What the threat model grants.
        num_rounds: Rounds over which update and weights are means; 1 for the reply of one round.
    """

    model: nn.Module
    dataset: DatasetSpec
    algorithm: Algorithm
    global_parameters: Mapping[str, Tensor]
    global_buffers: Mapping[str, Tensor]
    delta: Mapping[str, Tensor]
    knowledge: Knowledge
    num_rounds: int = 1

    def require_num_examples(self) -> int:
        """Return N_c or raise `NotGrantedError`."""
        return _require(self.knowledge.num_examples, "num_examples")

    def require_cohort(self) -> tuple[int, ...]:
        """Return N_c of each client, one entry for a single one, or raise `NotGrantedError`."""
        return self.knowledge.cohort or (self.require_num_examples(),)

    def require_local_training(self) -> LocalTraining:
        """Return the recipe of local training or raise `NotGrantedError`."""
        return _require(self.knowledge.local_training, "local_training")

    def require_local_steps(self) -> LocalSteps:
        """Return U, eta and momentum, from the recipe where that is granted, or raise `NotGrantedError`.

        For the mean over several clients, U is the largest of theirs.
        """
        recipe = self.knowledge.local_training
        if recipe is not None:
            return LocalSteps.of(recipe, max(self.require_cohort()))
        return _require(self.knowledge.local_steps, "local_training (or local_steps)")

    def require_client_buffers(self) -> Mapping[str, Tensor]:
        """Return the buffers of the reply or raise `NotGrantedError`."""
        return _require(self.knowledge.client_buffers, "client_buffers")

    def require_batch_statistics(self) -> Statistics:
        """Return the private batch's BatchNorm statistics or raise `NotGrantedError`."""
        return _require(self.knowledge.batch_statistics, "batch_statistics")


def mean_gradient(observation: Observation) -> dict[str, Tensor]:
    """Return ``-delta / (eta * U_c)``, the average gradient over the client's local steps.

    For the mean over several clients, U_c is the largest of theirs.

    This is the one place that turns an update into a gradient: its sign and its scale are decided here.

    Raises:
        NotGrantedError: If neither the local steps nor the recipe of local training and N_c are granted.

    References:
        Dimitrov et al., Data Leakage in Federated Averaging, TMLR 2022, Section 4.2 (the averaged update).
    """
    steps = observation.require_local_steps()
    return scale(observation.delta, -1.0 / (steps.learning_rate * steps.num_steps))


def _sizes(reply: ClientUpdate | AggregatedUpdate) -> tuple[int, ...]:
    """Return N_c of each client behind a reply."""
    return tuple(reply.num_examples.values()) if isinstance(reply, AggregatedUpdate) else (reply.num_examples,)


def _check_earlier(
    update: ClientUpdate | AggregatedUpdate,
    others: Sequence[ClientUpdate],
    earlier: Sequence[tuple[RoundRecord, ClientUpdate]],
) -> None:
    """Refuse a mean over rounds that is not one of the same client's replies."""
    if not earlier:
        return
    if isinstance(update, AggregatedUpdate) or others:
        raise ValueError("a mean over rounds is one of a single client's replies, got several clients")
    expected = (update.client_id, update.num_examples, update.algorithm)
    for _, reply in earlier:
        got = (reply.client_id, reply.num_examples, reply.algorithm)
        if got != expected:
            raise ValueError(
                "earlier replies must be the same client's, with as many images: expected client, N_c and algorithm "
                f"{expected}, got {got} in round {reply.server_round}"
            )


def _require(piece: Piece | None, name: str) -> Piece:
    if piece is None:
        raise NotGrantedError(f"the attack needs {name}, which the threat model does not grant")
    return piece
