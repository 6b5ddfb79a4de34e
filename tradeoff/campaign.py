"""Trains and attacks every arm of a study; what was done before is found again and not repeated.

    for each seed and arm:   federation (recorded once) -> for each attack: campaign -> scores

An interruption loses what was in flight and nothing else; the same command goes on.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from attacker.campaign import plan_campaign, run_campaign
from attacker.campaign_observer import CampaignObserver, TaskFailure
from attacker.metrics.features import FeatureExtractor
from attacker.metrics.lpips import PerceptualDistance
from attacker.results import score_results
from attacker.truth import read_truth
from fl_sim.events import Event
from fl_sim.run_store import RunStore, create_run, find_finished_run
from fl_sim.runtime import CLIENT_APP, run_federation
from tradeoff.study import Arm, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """A trained and attacked arm.

    Attributes:
        arm: Which.
        seed: Of the federation.
        run: Its run folder.
    """

    arm: Arm
    seed: int
    run: RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What scores are made with, beside PSNR and SSIM.

    Attributes:
        lpips: The perceptual distance, where weights are at hand.
        extractor: The features of the identifiability precision, where there are any.
    """

    lpips: PerceptualDistance | None = None
    extractor: FeatureExtractor | None = None


class StudyObserver(CampaignObserver):
    """Told what happens; every method may be overridden."""

    def on_arm(self, arm: Arm, seed: int) -> None:
        """An arm is about to be trained and attacked."""

    def on_federation(self, events: Iterable[Event]) -> None:
        """A federation runs; the events must be consumed."""
        for _ in events:
            pass

    def on_attacks(self, num_open: int) -> None:
        """So many attacks of a campaign are about to run."""

    def on_arm_done(self) -> None:
        """An arm is trained, attacked and scored."""


def run_study(
    study: Study,
    *,
    runs_dir: Path,
    engine: str,
    metrics: Metrics,
    observer: StudyObserver,
) -> tuple[tuple[ArmRun, ...], tuple[TaskFailure, ...]]:
    """Train and attack what is not there yet.

    Args:
        study: What is compared.
        runs_dir: Where the run folders of the arms live.
        engine: A name of `fl_sim.runtime`.
        metrics: What scores are made with.
        observer: Told what happens.

    Returns:
        All arms, seed by seed, and the attacks that failed.

    Raises:
        FederationError: If a federation did not finish.
    """
    done: list[ArmRun] = []
    failures: list[TaskFailure] = []
    for arm, seed in pairs(study):
        observer.on_arm(arm, seed)
        run = _recording(study, arm, seed, runs_dir, engine, observer)
        for attack in study.attacks:
            config = attack.config
            plan = plan_campaign(run, config)
            observer.on_attacks(len(plan.tasks))
            failures += run_campaign(plan, workers=config.workers, gpu_share=config.gpu_share, observer=observer)
        threshold = study.experiment.scoring.recovered_threshold_db
        truth = read_truth(run.folder)
        score_results(run, truth, threshold_db=threshold, lpips=metrics.lpips, extractor=metrics.extractor)
        done.append(ArmRun(arm=arm, seed=seed, run=run))
        observer.on_arm_done()
    return tuple(done), tuple(failures)


def pairs(study: Study) -> Iterator[tuple[Arm, int]]:
    """Yield the arms in the order in which they are run: all of a seed, then the next."""
    return ((arm, seed) for seed in study.seeds for arm in study.arms)


def _recording(study: Study, arm: Arm, seed: int, runs_dir: Path, engine: str, observer: StudyObserver) -> RunStore:
    experiment = study.federation(arm, seed)
    found = find_finished_run(experiment, runs_dir)
    if found is not None:
        return found
    run = create_run(experiment, runs_dir)
    with closing(run_federation(run, engine=engine, client_app=CLIENT_APP)) as events:
        observer.on_federation(events)
    return run
