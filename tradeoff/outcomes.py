"""What came out: means and standard errors of each arm under each attack, and which arms nothing else beats."""

from collections.abc import Sequence
from dataclasses import dataclass

from attacker.campaign import resolve_setting
from attacker.estimate import Estimate, estimate
from attacker.results import Result, read_results, score_values
from attacker.scoring import Score
from attacker.threat_models import THREAT_MODELS
from tradeoff.campaign import ArmRun
from tradeoff.study import Arm, Study, StudyAttack


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What an arm costs.

    Attributes:
        accuracy: Test accuracy after the last round, in [0, 1], over seeds.
        accuracy_loss: That of the arm without defense minus this one, over seeds, each compared with its own.
        epsilon: The largest that any client reports in the last round of any seed; ``None`` where none does.
    """

    accuracy: Estimate | None
    accuracy_loss: Estimate | None
    epsilon: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """What one attack gets out of an arm: means over the attacked updates.

    Attributes:
        title: What the tables call the attack.
        setting: Label under which its results are stored.
        realistic: Whether the attacker has only what an honest-but-curious server has.
        updates: Attacked updates, over rounds, clients and seeds.
        values: What `attacker.results.score_values` names, and ``wrong_label_share``; what was not measured is absent.
        not_followed: What an attacker who knows the defense could not follow, and why.
    """

    title: str
    setting: str
    realistic: bool
    updates: int
    values: dict[str, Estimate]
    not_followed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm.

    Attributes:
        arm: Which.
        training: What it costs.
        leakages: By attack, in the study's order.
        undominated: Whether no other arm has a higher accuracy and leaks less under its strongest attack.
    """

    arm: Arm
    training: Training
    leakages: tuple[Leakage, ...]
    undominated: bool = False

    @property
    def worst(self) -> Leakage | None:
        """The attack that recovers most, by PSNR; ``None`` where nothing was scored."""
        scored = [leakage for leakage in self.leakages if "psnr_db" in leakage.values]
        return max(scored, key=lambda leakage: leakage.values["psnr_db"].mean, default=None)


def outcomes(study: Study, runs: Sequence[ArmRun]) -> tuple[Outcome, ...]:
    """Return one outcome for each arm of a study.

    Args:
        study: What was compared.
        runs: All its arms.
    """
    undefended = {run.seed: _accuracy(run) for run in runs if run.arm == study.arms[0]}
    found: list[Outcome] = []
    for arm in study.arms:
        own = [run for run in runs if run.arm == arm]
        results = [result for run in own for result in read_results(run.run)]
        leakages = tuple(_leakage(attack, results) for attack in study.attacks)
        found.append(Outcome(arm=arm, training=_training(own, undefended), leakages=leakages))
    front = pareto_front([_position(outcome) for outcome in found])
    return tuple(
        Outcome(arm=outcome.arm, training=outcome.training, leakages=outcome.leakages, undominated=position in front)
        for position, outcome in enumerate(found)
    )


def pareto_front(points: Sequence[tuple[float, float] | None]) -> set[int]:
    """Return the positions of the points that no other point beats.

    Args:
        points: Accuracy and leakage; ``None`` for what has neither. A point is beaten by one with no lower accuracy and
            no higher leakage that is better in one of them.
    """
    known = {position: point for position, point in enumerate(points) if point is not None}

    def beaten(accuracy: float, leakage: float) -> bool:
        return any(a >= accuracy and b <= leakage and (a, b) != (accuracy, leakage) for a, b in known.values())

    return {position for position, point in known.items() if not beaten(*point)}


def _position(outcome: Outcome) -> tuple[float, float] | None:
    if outcome.training.accuracy is None or outcome.worst is None:
        return None
    return outcome.training.accuracy.mean, outcome.worst.values["psnr_db"].mean


def _training(runs: Sequence[ArmRun], undefended: dict[int, float | None]) -> Training:
    accuracies = [(_accuracy(run), undefended.get(run.seed)) for run in runs]
    losses = [before - after for after, before in accuracies if after is not None and before is not None]
    epsilons = [epsilon for run in runs for epsilon in _epsilons(run)]
    return Training(
        accuracy=estimate([accuracy for accuracy, _ in accuracies if accuracy is not None]),
        accuracy_loss=estimate(losses),
        epsilon=max(epsilons, default=None),
    )


def _accuracy(run: ArmRun) -> float | None:
    evaluations = run.run.evaluations()
    return evaluations[-1].accuracy if evaluations else None


def _epsilons(run: ArmRun) -> list[float]:
    """Return what clients report in their last recorded reply; it grows with the rounds."""
    rounds = run.run.recording.rounds()
    return [
        metrics["epsilon"]
        for metrics in (run.run.recording.read_metrics(rounds[-1]).values() if rounds else ())
        if "epsilon" in metrics
    ]


def _leakage(attack: StudyAttack, results: Sequence[Result]) -> Leakage:
    setting = resolve_setting(attack.config)
    own = [result for result in results if result.setting.label == setting.label]
    scores = [result.score for result in own if result.score is not None]
    values = {name: estimate([row[name] for row in map(_values, scores) if name in row]) for name in _names(scores)}
    return Leakage(
        title=attack.title,
        setting=setting.label,
        realistic=THREAT_MODELS[setting.threat_model].realistic,
        updates=len(own),
        values={name: value for name, value in values.items() if value is not None},
        not_followed=tuple(
            dict.fromkeys(
                remark
                for result in own
                for remark in result.reconstruction.remarks
                if remark.startswith("does not follow")
            )
        ),
    )


def _names(scores: Sequence[Score]) -> list[str]:
    return sorted({name for score in scores for name in _values(score)})


def _values(score: Score) -> dict[str, float]:
    return {**score_values(score), "wrong_label_share": score.label_count_error / score.num_images}
