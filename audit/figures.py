"""What leaves a client beside its update: numbers about its images, never images."""

import math
from dataclasses import dataclass, fields

PREFIX = "audit."
UNKNOWN = math.nan
"""A figure that could not be measured; every client's reply has the same names, as Flower's strategies demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an attack within the budget found of a client's own images.

    Attributes:
        psnr_db_max: PSNR of the image that came out best, dB.
        psnr_db_mean: Mean over the images, dB.
        recovered_share: Share of the images above the threshold, in [0, 1].
        baseline_psnr_db: The best image's PSNR of a guess that did not see the update, dB.
        wrong_labels: Images whose label was recovered wrongly.
        num_steps: Steps that fitted into the budget.
        seconds: Wall time of the audit.
        failed: 1 where no attack could be run; the figures are then unknown (NaN).
    """

    psnr_db_max: float
    psnr_db_mean: float
    recovered_share: float
    baseline_psnr_db: float
    wrong_labels: float
    num_steps: float
    seconds: float
    failed: float = 0.0

    def as_metrics(self, prefix: str = PREFIX) -> dict[str, float]:
        """Return the figures by name."""
        return {f"{prefix}{field.name}": float(getattr(self, field.name)) for field in fields(self)}


def unaudited(seconds: float) -> Figures:
    """Return the figures of an audit that could not be made."""
    return Figures(
        psnr_db_max=UNKNOWN,
        psnr_db_mean=UNKNOWN,
        recovered_share=UNKNOWN,
        baseline_psnr_db=UNKNOWN,
        wrong_labels=UNKNOWN,
        num_steps=0.0,
        seconds=seconds,
        failed=1.0,
    )
