"""What one attack found in each round and of each client, above what a guess without the update would score.

    exposure = PSNR of the reconstruction - PSNR of the mean image of all others' images   (dB, by client and round)

Clients whose images look like everybody else's score high without leaking anything; the difference does not count that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from attacker.attack_store import ResultKey
from attacker.estimate import Estimate, estimate
from attacker.exposure.rank_correlation import RankCorrelation, rank_correlation
from attacker.exposure.traits import DataTraits
from attacker.results import score_values
from attacker.scoring import Score

MEASURES = ("psnr_db", "mean_image_psnr_db", "exposure_db", "recovered_share", "ssim", "wrong_label_share")


class Scored(Protocol):
    """What is summed up: `attacker.results.Result`, or the same without its images."""

    @property
    def key(self) -> ResultKey:
        """Round, client and seed."""
        ...

    @property
    def score(self) -> Score | None:
        """The comparison with the truth, where there is one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One update under attack: means over the attack's seeds.

    Attributes:
        server_round: The round.
        client_id: The client.
        values: By the names of `MEASURES`.
    """

    server_round: int
    client_id: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundExposure:
    """A round: means over clients.

    Attributes:
        server_round: The round.
        values: By the names of `MEASURES`.
        accuracy: Test accuracy of the model that was sent out in this round, in [0, 1]; ``None`` if not evaluated.
    """

    server_round: int
    values: Mapping[str, Estimate]
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientExposure:
    """A client: means over rounds.

    Attributes:
        client_id: The client.
        values: By the names of `MEASURES`.
        by_round: Exposure in dB by round.
        traits: Its data.
    """

    client_id: int
    values: Mapping[str, Estimate]
    by_round: Mapping[int, float]
    traits: DataTraits


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Everything that is shown.

    Attributes:
        leaks: By round and client.
        rounds: Ascending.
        clients: The most exposed first.
        explanations: By trait, its rank correlation over clients with their exposure; ``None`` where there is none.
        between_rounds: Rank correlation of exposures over clients in the first and in the last round: whether the same
            clients stay exposed; ``None`` with a single round.
    """

    leaks: tuple[Leak, ...]
    rounds: tuple[RoundExposure, ...]
    clients: tuple[ClientExposure, ...]
    explanations: Mapping[str, RankCorrelation | None]
    between_rounds: RankCorrelation | None


def leaks_of(results: Sequence[Scored]) -> tuple[Leak, ...]:
    """Return one leak for each round and client of one attack's scored results, by round and client.

    Results without a score, and those of several clients' mean, say nothing about a client and are left out.
    """
    found: dict[tuple[int, int], list[Mapping[str, float]]] = {}
    for result in results:
        if result.score is None or result.key.others:
            continue
        values = score_values(result.score)
        values["wrong_label_share"] = result.score.label_count_error / result.score.num_images
        if "psnr_db" in values and "mean_image_psnr_db" in values:
            values["exposure_db"] = values["psnr_db"] - values["mean_image_psnr_db"]
            found.setdefault((result.key.server_round, result.key.client_id), []).append(values)
    return tuple(
        Leak(
            server_round=server_round,
            client_id=client_id,
            values={name: fmean(own[name] for own in seeds) for name in MEASURES if all(name in own for own in seeds)},
        )
        for (server_round, client_id), seeds in sorted(found.items())
    )


def exposure(
    leaks: Sequence[Leak], traits_of: Callable[[int], DataTraits], accuracies: Mapping[int, float | None]
) -> Exposure:
    """Sum up the leaks of one attack.

    Args:
        leaks: Of one attack, at least one.
        traits_of: A client's data.
        accuracies: Test accuracy after each round; 0 is the untrained model.

    Raises:
        ValueError: If there is no leak.
    """
    if not leaks:
        raise ValueError("expected at least one scored attack on a single client's update, got none")
    numbers = sorted({leak.server_round for leak in leaks})
    clients = [
        ClientExposure(
            client_id=client_id,
            values=_estimates(own),
            by_round={leak.server_round: leak.values["exposure_db"] for leak in own},
            traits=traits_of(client_id),
        )
        for client_id in sorted({leak.client_id for leak in leaks})
        for own in [[leak for leak in leaks if leak.client_id == client_id]]
    ]
    exposures = [client.values["exposure_db"].mean for client in clients]
    named = [client.traits.named() for client in clients]
    return Exposure(
        leaks=tuple(leaks),
        rounds=tuple(
            RoundExposure(
                server_round=number,
                values=_estimates([leak for leak in leaks if leak.server_round == number]),
                accuracy=accuracies.get(number - 1),
            )
            for number in numbers
        ),
        clients=tuple(sorted(clients, key=lambda client: -client.values["exposure_db"].mean)),
        explanations={trait: rank_correlation([own[trait] for own in named], exposures) for trait in named[0]},
        between_rounds=None
        if len(numbers) < 2
        else rank_correlation(
            [client.by_round.get(numbers[0]) for client in clients],
            [client.by_round.get(numbers[-1]) for client in clients],
        ),
    )


def _estimates(leaks: Sequence[Leak]) -> dict[str, Estimate]:
    found = {name: estimate([leak.values[name] for leak in leaks if name in leak.values]) for name in MEASURES}
    return {name: value for name, value in found.items() if value is not None}
