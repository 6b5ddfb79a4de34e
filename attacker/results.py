"""The results of a run, one row for each (round, client, setting, seed): what was granted, how it went, its score.

Rows are written in two steps that never meet: the attack's outcome first, from the recording alone; the score later,
where the truth is at hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacker.attack import Reconstruction
from attacker.attack_store import AttackSetting, Ending, ResultKey, list_attack_stores
from attacker.baselines import trivial_baselines
from attacker.metrics.features import FeatureExtractor
from attacker.metrics.iip import POOL_SIZE, ImagePool, make_pool
from attacker.metrics.lpips import PerceptualDistance
from attacker.observation import ThreatModel
from attacker.score_json import score_from_json, score_to_json
from attacker.scoring import Score, score
from attacker.threat_models import THREAT_MODELS
from attacker.truth import Truth
from fl_sim.files import read_json, write_json
from fl_sim.run_store import RunStore
from fl_sim.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row.

    Attributes:
        key: Round, client and seed.
        setting: The attack.
        threat_model: What was granted.
        reconstruction: What the attack returned.
        score: The comparison with the truth, or ``None`` where there was none at hand.
    """

    key: ResultKey
    setting: AttackSetting
    threat_model: ThreatModel
    reconstruction: Reconstruction
    score: Score | None


def score_results(
    run: RunStore,
    truth: Truth,
    *,
    threshold_db: float,
    lpips: PerceptualDistance | None = None,
    extractor: FeatureExtractor | None = None,
) -> int:
    """Score every result that has no score yet.

    Args:
        run: The run.
        truth: Its private images.
        threshold_db: An image counts as recovered strictly above it.
        lpips: The perceptual distance, where weights are at hand.
        extractor: The features of the image identifiability precision, where there are any.

    Returns:
        The number of newly scored results.
    """
    num_scored = 0
    run_pool: ImagePool | None = None
    for store in list_attack_stores(run.attacks):
        for key in store.finished():
            path = score_path(run, store.folder.name, key)
            if path.exists():
                continue
            reconstruction = store.read_result(key)
            if extractor is not None and run_pool is None:  # made for the first score only: it takes a while
                run_pool = make_pool(truth.identification_pool(POOL_SIZE), extractor)
            write_json(path, score_to_json(_score(reconstruction, truth, key, threshold_db, lpips, run_pool)))
            num_scored += 1
    return num_scored


def read_results(run: RunStore) -> tuple[Result, ...]:
    """Return all results of a run, by attack setting, round, client and seed.

    Raises:
        RecordingError: If a result or a score is damaged.
    """
    results: list[Result] = []
    for store in list_attack_stores(run.attacks):
        setting = store.read_setting()
        for key in store.finished():
            results.append(
                Result(
                    key=key,
                    setting=setting,
                    threat_model=THREAT_MODELS[setting.threat_model],
                    reconstruction=store.read_result(key),
                    score=read_score(run, store.folder.name, key),
                )
            )
    return tuple(results)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSummary:
    """A `Result` without its tensors, which are most of the work of reading it.

    Attributes:
        key: Round, client and seed.
        setting: The attack.
        threat_model: What was granted.
        ending: How the attack ended.
        score: The comparison with the truth, or ``None`` where there was none at hand.
    """

    key: ResultKey
    setting: AttackSetting
    threat_model: ThreatModel
    ending: Ending
    score: Score | None


def read_score(run: RunStore, setting: str, key: ResultKey) -> Score | None:
    """Return the score of one result, or ``None`` where it has none.

    Args:
        run: The run.
        setting: Label of the attack setting.
        key: The result.

    Raises:
        RecordingError: If the score is damaged.
    """
    path = score_path(run, setting, key)
    return score_from_json(read_json(path)) if path.exists() else None


def score_path(run: RunStore, setting: str, key: ResultKey) -> Path:
    """Return where the score of a result stands, if it has one."""
    return run.scores / setting / f"{key.folder_name}.json"


def result_row(result: Result) -> dict[str, Any]:
    """Return a result as one flat row for tables, CSV and JSON; images are left out."""
    found = result.score
    identifiability = None if found is None else found.identifiability
    row: dict[str, Any] = {
        "round": result.key.server_round,
        "client": result.key.client_id,
        "other_clients": list(result.key.others),
        "attack": result.setting.name,
        "setting": result.setting.label,
        "seed": result.key.seed,
        "threat_model": result.threat_model.name,
        "realistic": result.threat_model.realistic,
        "granted": list(result.threat_model.granted()),
        "outcome": result.reconstruction.outcome.name,
        "matching_loss": result.reconstruction.matching_loss,
        "seconds": result.reconstruction.seconds,
        "num_images": None if found is None else found.num_images,
        "mean_psnr_db": None if found is None else found.mean_psnr_db,
        "mean_ssim": None if found is None else found.mean_ssim,
        "mean_lpips": None if found is None else found.mean_lpips,
        "iip": None if identifiability is None else identifiability.precision,
        "iip_extractor": None if identifiability is None else identifiability.extractor,
        "iip_pool_size": None if identifiability is None else identifiability.pool_size,
        "recovered_share": None if found is None else found.recovered_share,
        "threshold_db": None if found is None else found.threshold_db,
        "label_count_error": None if found is None else found.label_count_error,
        "psnr_db": None if found is None else list(found.psnr_db),
        "ssim": None if found is None else list(found.ssim),
    }
    for baseline in () if found is None else found.baselines:
        prefix = f"baseline_{baseline.name.replace(' ', '_')}"
        row[f"{prefix}_psnr_db"] = baseline.mean_psnr_db
        row[f"{prefix}_ssim"] = baseline.mean_ssim
        row[f"{prefix}_iip"] = baseline.iip
        row[f"{prefix}_recovered_share"] = baseline.recovered_share
    return row


def score_values(found: Score) -> dict[str, float]:
    """Return a score as named numbers; what was not measured is absent.

    ``psnr_db``, ``recovered_share``, ``ssim``, ``lpips``, ``iip``, ``wrong_labels`` (a number of images), and for the
    trivial baselines ``mean_image_psnr_db``, ``mean_image_recovered_share`` and so on.
    """
    values: dict[str, float | None] = {
        "psnr_db": found.mean_psnr_db,
        "recovered_share": found.recovered_share,
        "ssim": found.mean_ssim,
        "lpips": found.mean_lpips,
        "iip": None if found.identifiability is None else found.identifiability.precision,
        "wrong_labels": found.label_count_error,
    }
    for baseline in found.baselines:
        name = baseline.name.replace(" ", "_")
        values[f"{name}_psnr_db"] = baseline.mean_psnr_db
        values[f"{name}_recovered_share"] = baseline.recovered_share
    return {name: value for name, value in values.items() if value is not None}


def _score(
    reconstruction: Reconstruction,
    truth: Truth,
    key: ResultKey,
    threshold_db: float,
    lpips: PerceptualDistance | None,
    run_pool: ImagePool | None,
) -> Score:
    private = truth.private_batch(*key.clients)
    private_pool = None if run_pool is None else run_pool.including(private.images)
    pool = truth.pool(*key.clients)
    baselines = ()
    if len(pool):  # nothing else of the data is at hand where a single client's update was imported
        baselines = trivial_baselines(
            private.images,
            pool,
            threshold_db=threshold_db,
            generator=generator(0, "baseline", key.client_id),
            lpips=lpips,
            private_pool=private_pool,
        )
    return score(
        images=reconstruction.images,
        labels=reconstruction.labels,
        private_images=private.images,
        private_labels=private.labels,
        num_classes=truth.num_classes,
        threshold_db=threshold_db,
        lpips=lpips,
        baselines=baselines,
        private_pool=private_pool,
    )
