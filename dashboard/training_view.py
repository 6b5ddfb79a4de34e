"""Leakage along training: one attack's scores by round, beside what a guess would score and the model's accuracy."""

from dataclasses import dataclass

from attacker.estimate import Estimate, estimate
from attacker.exposure.exposures import leaks_of
from dashboard.run_reader import RunReader, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLeak:
    """One client's mean PSNR in a round, in dB."""

    client_id: int
    psnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLeak:
    """A round: means over clients.

    Attributes:
        server_round: The round.
        psnr_db: Of the reconstructions.
        guess_psnr_db: Of the mean image of all others' images.
        exposure_db: The difference of the two.
        recovered_share: Share of recovered images, in [0, 1].
        accuracy: Of the model that was sent out in this round.
        clients: Each of them.
    """

    server_round: int
    psnr_db: Estimate | None
    guess_psnr_db: Estimate | None
    exposure_db: Estimate | None
    recovered_share: Estimate | None
    accuracy: float | None
    clients: tuple[ClientLeak, ...]


def training_view(reader: RunReader, setting: Setting) -> tuple[RoundLeak, ...]:
    """Return one attack's scores by round; empty in the attacker's view and where nothing was scored."""
    leaks = leaks_of(reader.summaries(setting)[0])
    accuracies = {entry.server_round: entry.accuracy for entry in reader.evaluations()}
    found: list[RoundLeak] = []
    for server_round in sorted({leak.server_round for leak in leaks}):
        own = [leak for leak in leaks if leak.server_round == server_round]
        means = {
            name: estimate([leak.values[name] for leak in own if name in leak.values])
            for name in ("psnr_db", "mean_image_psnr_db", "exposure_db", "recovered_share")
        }
        found.append(
            RoundLeak(
                server_round=server_round,
                psnr_db=means["psnr_db"],
                guess_psnr_db=means["mean_image_psnr_db"],
                exposure_db=means["exposure_db"],
                recovered_share=means["recovered_share"],
                accuracy=accuracies.get(server_round - 1),
                clients=tuple(ClientLeak(client_id=leak.client_id, psnr_db=leak.values["psnr_db"]) for leak in own),
            )
        )
    return tuple(found)
