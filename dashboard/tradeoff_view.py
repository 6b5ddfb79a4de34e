"""Accuracy against leakage: one point for each run, or for each arm of a study of defenses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacker.estimate import Estimate, estimate
from attacker.results import ResultSummary
from dashboard.run_index import RunIndex, RunPlace
from dashboard.run_reader import RunReader
from dashboard.run_view import defenses_text
from fl_sim.errors import FlSimError
from tradeoff.outcomes import pareto_front
from tradeoff.study import NO_DEFENSE


@dataclass(frozen=True, slots=True, kw_only=True)
class PointView:
    """What stands at one place of the plot.

    Attributes:
        label: The defenses, in words.
        family: Points of one family are drawn alike: the names of the defenses.
        runs: The runs behind it; a click opens the first.
        attack: The attack that found most.
        realistic: Whether that attack was granted only what an honest-but-curious server has.
        accuracy: On the test images after the last round, over runs.
        psnr_db: Of that attack, over attacked updates.
        guess_psnr_db: Of the best guess without the update.
        recovered_share: Of that attack.
        undominated: Whether no other point has a higher accuracy and leaks less.
    """

    label: str
    family: str
    runs: tuple[str, ...]
    attack: str
    realistic: bool
    accuracy: Estimate
    psnr_db: Estimate
    guess_psnr_db: float | None
    recovered_share: Estimate | None
    undominated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeoffView:
    """A plot.

    Attributes:
        groups: What can be plotted: ``""`` for the runs of their own, and the studies.
        group: What is.
        points: The points; none in the attacker's view, who knows no leakage.
        left_out: Runs that have no accuracy or no score.
    """

    groups: tuple[str, ...]
    group: str
    points: tuple[PointView, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class _Measured:
    place: RunPlace
    defenses: str
    family: str
    accuracy: float
    by_attack: dict[tuple[str, bool], list[ResultSummary]]


def tradeoff_view(index: RunIndex, group: str, *, sees_truth: bool) -> TradeoffView:
    """Return a plot.

    Args:
        index: The runs.
        group: A study; ``""`` takes the runs that belong to none.
        sees_truth: Nothing is plotted without.
    """
    groups = ("", *index.studies())
    if not sees_truth:
        return TradeoffView(groups=groups, group=group, points=(), left_out=0)
    places = [place for place in index.places() if place.study == group]
    measured = [found for place in places if (found := _measure(index, place)) is not None]
    # The seeds of a study are one arm; runs of their own may differ in anything, and stand alone.
    names = list(dict.fromkeys(one.defenses if group else one.place.run_id for one in measured))
    arms = [[one for one in measured if name == (one.defenses if group else one.place.run_id)] for name in names]
    points = [point for arm in arms if (point := _point(arm)) is not None]
    front = pareto_front([(point.accuracy.mean, point.psnr_db.mean) for point in points])
    return TradeoffView(
        groups=groups,
        group=group,
        points=tuple(replace(point, undominated=position in front) for position, point in enumerate(points)),
        left_out=len(places) - len(measured),
    )


def _measure(index: RunIndex, place: RunPlace) -> _Measured | None:
    try:
        reader = RunReader(index.find(place.run_id).store, sees_truth=True)
        evaluations, manifest = reader.evaluations(), reader.manifest()
        by_attack: dict[tuple[str, bool], list[ResultSummary]] = {}
        for setting in reader.settings()[0]:
            scored = [one for one in reader.summaries(setting)[0] if one.score is not None]
            if scored:
                by_attack[setting.attack.label, setting.threat_model.realistic] = scored
    except (FlSimError, OSError):
        return None
    if not evaluations or not by_attack:
        return None
    return _Measured(
        place=place,
        defenses=defenses_text(manifest) or NO_DEFENSE,
        family=", ".join(part.name for part in manifest.declared_defenses) or NO_DEFENSE,
        accuracy=evaluations[-1].accuracy,
        by_attack=by_attack,
    )


def _point(arm: Sequence[_Measured]) -> PointView | None:
    candidates = [found for key in arm[0].by_attack if (found := _leakage(arm, key)) is not None]
    accuracy = estimate([one.accuracy for one in arm])
    # Realistic attacks first: an upper bound counts only where there is nothing else.
    worst = max(candidates, key=lambda found: (found.realistic, found.psnr_db.mean), default=None)
    return None if worst is None or accuracy is None else replace(worst, accuracy=accuracy)


def _leakage(arm: Sequence[_Measured], key: tuple[str, bool]) -> PointView | None:
    results = [result for one in arm for result in one.by_attack.get(key, ())]
    scores = [result.score for result in results if result.score is not None]
    psnr_db = estimate([score.mean_psnr_db for score in scores if score.mean_psnr_db is not None])
    guesses = estimate([score.best_baseline.mean_psnr_db for score in scores if score.best_baseline is not None])
    if psnr_db is None:
        return None
    return PointView(
        label=arm[0].defenses,
        family=arm[0].family,
        runs=tuple(one.place.run_id for one in arm),
        attack=results[0].setting.name,
        realistic=key[1],
        accuracy=psnr_db,  # filled in by the caller, who knows the runs
        psnr_db=psnr_db,
        guess_psnr_db=None if guesses is None else guesses.mean,
        recovered_share=estimate([score.recovered_share for score in scores]),
    )
