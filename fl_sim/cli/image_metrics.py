"""The metrics that need weights from a file: loaded where those are at hand, else named in a notice."""

from dataclasses import dataclass
from pathlib import Path

from attacker.metrics.features import FeatureExtractor, FeaturesUnavailable, load_features
from attacker.metrics.lpips import LpipsUnavailable, PerceptualDistance, load_lpips
from fl_sim.config import ScoringConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMetrics:
    """What scores are made with, beside PSNR and SSIM.

    Attributes:
        lpips: The perceptual distance, or ``None``.
        extractor: The features of the identifiability precision, or ``None``.
        notices: What is missing, and how to get it.
    """

    lpips: PerceptualDistance | None
    extractor: FeatureExtractor | None
    notices: tuple[str, ...]


def load_image_metrics(scoring: ScoringConfig) -> ImageMetrics:
    """Load what an experiment asks for.

    Raises:
        ConfigError: For features of an unknown name.
    """
    lpips, extractor = load_lpips(_path(scoring.alexnet_weights)), load_extractor(scoring)
    return ImageMetrics(
        lpips=None if isinstance(lpips, LpipsUnavailable) else lpips,
        extractor=None if isinstance(extractor, FeaturesUnavailable) else extractor,
        notices=tuple(
            found.notice for found in (lpips, extractor) if isinstance(found, LpipsUnavailable | FeaturesUnavailable)
        ),
    )


def load_extractor(scoring: ScoringConfig) -> FeatureExtractor | FeaturesUnavailable:
    """Build the features that an experiment's scores are made with, or say why there are none.

    Raises:
        ConfigError: For an unknown name.
    """
    return load_features(
        scoring.feature_extractor,
        efficientnet_weights=_path(scoring.efficientnet_weights),
        alexnet_weights=_path(scoring.alexnet_weights),
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
