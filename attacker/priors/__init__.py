"""What an attacker knows about pictures before seeing an update: one file a prior; `PRIORS` names them.

A prior is a plain function of images (or of what a model makes of them) that returns a scalar, small for likely
pictures. Keyword arguments are its own settings.
"""

from collections.abc import Callable

from torch import Tensor

from attacker.priors.batch_norm_statistics import batch_norm_statistics
from attacker.priors.epoch_order import epoch_order
from attacker.priors.feature_span import feature_span
from attacker.priors.feature_volume import feature_volume
from attacker.priors.group_consistency import group_consistency
from attacker.priors.l2_norm import l2_norm
from attacker.priors.pixel_box import pixel_box
from attacker.priors.quadratic_variation import quadratic_variation
from attacker.priors.total_variation import total_variation
from fl_sim.tables import Table

PRIORS: Table[Callable[..., Tensor]] = Table(
    "prior",
    {
        "total_variation": total_variation,
        "quadratic_variation": quadratic_variation,
        "pixel_box": pixel_box,
        "epoch_order": epoch_order,
        "feature_span": feature_span,
        "feature_volume": feature_volume,
        "l2_norm": l2_norm,
        "batch_norm_statistics": batch_norm_statistics,
        "group_consistency": group_consistency,
    },
)
