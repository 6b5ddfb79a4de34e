"""Outcomes as text: Markdown, CSV, JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from attacker.estimate import Estimate
from tradeoff.outcomes import Leakage, Outcome
from tradeoff.study import PublishedNumbers, Study

READING = (
    "PSNR in dB and shares of recovered images are means over attacked updates ± standard error; accuracy is that of "
    "the global model on the test images after the last round. Mean image: what the mean of the other clients' images "
    "scores, without any update. An asterisk marks an attack that is granted more than an honest-but-curious server "
    "has. ◆ marks arms that no other one beats in both accuracy and leakage under its strongest attack."
)


def markdown(study: Study, found: Sequence[Outcome], *, command: str) -> str:
    """Return the table with its setting."""
    labels = [header(leakage) for leakage in found[0].leakages]
    rows = [
        ["defense", "accuracy", "lost", "epsilon", *labels, "wrong labels", "mean image"],
        ["---"] * (6 + len(labels)),
        *(cells(outcome, study.published_for(outcome.arm)) for outcome in found),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    remarks = "".join(f"\n- {remark}" for remark in not_followed(found))
    text = f"# Defenses: {study.experiment.name}\n\n    {command}\n\n{setting(study)}\n\n{table}\n\n{reading(study)}\n"
    return f"{text}{remarks}\n" if remarks else text


def reading(study: Study) -> str:
    """Return how the table is read, and whose numbers stand in brackets."""
    return READING if study.published is None else f"{READING} In brackets: {study.published.source}."


def setting(study: Study) -> str:
    """Return what was trained and attacked, in a sentence."""
    experiment, recipe = study.experiment, study.experiment.training
    rounds, attacked = experiment.federation.num_rounds, study.attacks[0].config
    return (
        f"{experiment.data.num_clients} clients of {experiment.data.dataset}, model {experiment.model.name}, "
        f"{experiment.federation.algorithm.value}, E = {recipe.epochs}, m = {recipe.batch_size or 'all'}, "
        f"eta = {recipe.learning_rate:g}, {rounds} round{'s' if rounds > 1 else ''}; attacked: rounds "
        f"{_selection(attacked.rounds)}, clients {_selection(attacked.clients)}; federation seeds "
        f"{', '.join(map(str, study.seeds))}; recovered means above {experiment.scoring.recovered_threshold_db:g} dB."
    )


def not_followed(found: Sequence[Outcome]) -> tuple[str, ...]:
    """Return a line for each arm and attack that knew a defense and could not follow it, with the reason."""
    return tuple(
        f"{outcome.arm.label}, {leakage.title}: {remark}"
        for outcome in found
        for leakage in outcome.leakages
        for remark in leakage.not_followed
    )


def header(leakage: Leakage) -> str:
    """Return what stands above an attack's column."""
    return f"{leakage.title}{'' if leakage.realistic else ' *'}"


def cells(outcome: Outcome, published: PublishedNumbers | None = None) -> list[str]:
    """Return one line of the table, with numbers of somebody else in brackets."""
    training, worst = outcome.training, outcome.worst
    values = {} if worst is None else worst.values
    accuracy = None if published is None else published.accuracy_percent
    others = {} if published is None else published.attacks
    return [
        f"{'◆ ' if outcome.undominated else ''}{outcome.arm.label}",
        percent(training.accuracy) + ("" if accuracy is None else f" ({accuracy:.1f} %)"),
        percent(training.accuracy_loss),
        "–" if training.epsilon is None else f"{training.epsilon:.3g}",
        *(leaked(leakage, others.get(leakage.title)) for leakage in outcome.leakages),
        percent(values.get("wrong_label_share"), digits=0),
        number(values.get("mean_image_psnr_db")),
    ]


def leaked(leakage: Leakage, published: tuple[float, float] | None = None) -> str:
    """Return PSNR and share of one attack, with what somebody else measured in brackets."""
    other = "" if published is None else f" ({published[0]:.1f} dB / {published[1]:.0f} %)"
    if "psnr_db" not in leakage.values:
        return f"–{other}"
    share = percent(leakage.values.get("recovered_share"), digits=0)
    return f"{number(leakage.values['psnr_db'])} dB / {share}{other}"


def number(value: Estimate | None) -> str:
    """Return a mean with its standard error, where it has one."""
    if value is None:
        return "–"
    return f"{value.mean:.1f}" + ("" if value.standard_error is None else f" ± {value.standard_error:.1f}")


def percent(value: Estimate | None, *, digits: int = 1) -> str:
    """Return a share in percent, likewise."""
    if value is None:
        return "–"
    error = "" if value.standard_error is None else f" ± {100 * value.standard_error:.{digits}f}"
    return f"{100 * value.mean:.{digits}f}{error} %"


def csv_text(found: Sequence[Outcome]) -> str:
    """Return one line for each arm, attack and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["defense", "parameter", "strength", "attack", "metric", "mean", "standard_error", "number"])
    for outcome in found:
        for attack, metric, value in _all_values(outcome):
            arm = outcome.arm
            strength = "" if arm.strength is None else arm.strength
            error = "" if value.standard_error is None else f"{value.standard_error:.6g}"
            row = [arm.family, arm.parameter, strength, attack, metric, f"{value.mean:.6g}", error, value.number]
            writer.writerow(row)
    return stream.getvalue()


def json_text(study: Study, found: Sequence[Outcome]) -> str:
    """Return everything for programs."""
    lines: list[dict[str, Any]] = []
    for outcome in found:
        values = [
            {
                "attack": attack or None,
                "metric": metric,
                "mean": value.mean,
                "standard_error": value.standard_error,
                "number": value.number,
            }
            for attack, metric, value in _all_values(outcome)
        ]
        arm, published = outcome.arm, study.published_for(outcome.arm)
        lines.append(
            {
                "defense": arm.family,
                "parameter": arm.parameter or None,
                "strength": arm.strength,
                "chain": [{"name": link.name, "options": link.options} for link in arm.defenses],
                "undominated": outcome.undominated,
                "values": values,
                "published": None if published is None else asdict(published),
            }
        )
    content = {
        "experiment": study.experiment.name,
        "setting": setting(study),
        "published": None if study.published is None else study.published.source,
        "arms": lines,
    }
    return json.dumps(content, indent=1) + "\n"


def _all_values(outcome: Outcome) -> list[tuple[str, str, Estimate]]:
    training = outcome.training
    epsilon = None if training.epsilon is None else Estimate(mean=training.epsilon, standard_error=None, number=1)
    costs = {"accuracy": training.accuracy, "accuracy_loss": training.accuracy_loss, "epsilon": epsilon}
    found = [("", name, value) for name, value in costs.items() if value is not None]
    return found + [
        (leakage.title, name, value) for leakage in outcome.leakages for name, value in sorted(leakage.values.items())
    ]


def _selection(selection: str | tuple[int, ...]) -> str:
    return selection if isinstance(selection, str) else ", ".join(map(str, selection))
