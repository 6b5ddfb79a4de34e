"""A diagnosis as sentences and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from attacker.diagnosis.attempts import Attempt
from attacker.diagnosis.consistency import Check, worst
from attacker.diagnosis.inquiry import Evidence, Finding
from attacker.diagnosis.verdict import Diagnosis, Outcome
from fl_sim.records import DeclaredDefense

NOTE = "Replayed with the truth: the private images and the client's own order. No attacker could have drawn this up."
WITHOUT_TRUTH = "Consistency only: without the truth nothing can be replayed."
NOT_FINITE = "Consistency only: the update is not finite, and nothing can be compared with it."
_DECLARED_AS = {
    "noise": ("gaussian_noise", "laplace_noise", "dp_sgd"),
    "clipping": ("clipping", "dp_sgd"),
    "pruning": ("random_pruning", "magnitude_pruning", "top_k"),
    "quantisation": ("quantisation", "sign"),
}
_WORST_TENSORS = 3
_AS_LOW = 2.0
"""A found loss of so many times the truth's is as low as the truth's."""


def sentences(found: Diagnosis, declared: Sequence[DeclaredDefense]) -> list[str]:
    """Say what was found, the verdict first.

    Args:
        found: The diagnosis.
        declared: The clients' chain of defenses, which the replay leaves out.
    """
    best = found.findings[0] if found.findings else None
    residual = f"residual {number(found.residual)} of the update's energy"
    lines: list[str] = []
    if found.outcome is Outcome.MATCHES:
        lines.append(f"{residual}: the recorded update is what the declared training gives; optimisation is the limit")
        lines.extend(_named(finding) for finding in found.findings)
        if found.residual > found.near_zero:
            lines.append(
                f"two draws of what is not known (order, dropout) differ by {number(found.expected)} of the energy: "
                "what changes less than that cannot be seen"
            )
    elif found.outcome is Outcome.UNEXPLAINED or best is None:
        lines.append(
            f"{residual}: the recorded update is not what the declared training gives, and no single cause that was "
            "tried explains half of it: several at once, other images than the truth, or one that is not in the table"
        )
    elif best.evidence is Evidence.EXACT:
        lines.append(f"{residual}; explained by {_named(best)}: {number(best.residual)}")
    elif best.evidence is Evidence.STATISTICAL:
        lines.append(f"{residual}; accounted for by {_named(best)}")
    else:
        lines.append(f"{residual}; explained best by {_named(best)}: {number(best.residual)}, the rest is unexplained")
    if found.outcome in (Outcome.MISMATCH, Outcome.PARTLY) and found.alike:
        lines.append(f"cannot be told apart from {'; '.join(_named(finding) for finding in found.alike)}")
    if best is not None and found.cause is not None:
        lines.extend(_declaration(best, declared))
    if found.outcome in (Outcome.PARTLY, Outcome.UNEXPLAINED):
        lines.append(f"least explained: {_least_explained(found)}")
    return lines


def attempt_sentence(one: Attempt) -> str:
    """Say how far the images that an attack found are from the truth, in the attack's own matching.

    Args:
        one: An attack on an update that the declared training explains.
    """
    if not math.isfinite(one.found):
        return f"{one.attack} (seed {one.seed}): its images give no finite update"
    place = f"{one.attack} (seed {one.seed}): its images are at {number(one.found)} in {one.distance}"
    if one.found <= _AS_LOW * one.truth:
        return f"{place}, the truth at {number(one.truth)}: the matching cannot tell them apart"
    return f"{place}, the truth at {number(one.truth)}: a better search would have come closer"


def json_text(
    *,
    note: str,
    description: Mapping[str, Any],
    found: Diagnosis | None,
    declared: Sequence[DeclaredDefense],
    checks: Sequence[Check],
    attempts: Sequence[Attempt],
) -> str:
    """Return everything for programs.

    Args:
        note: What stands above all of it.
        description: Which update.
        found: The diagnosis, or ``None`` without the truth.
        declared: The clients' chain of defenses.
        checks: Of consistency.
        attempts: Attacks on the update.
    """
    content = {
        "note": note,
        **description,
        "declared_defenses": [asdict(defense) for defense in declared],
        "verdict": None if found is None else _as_json(found, declared),
        "consistency": {"worst": worst(checks).value, "checks": [asdict(check) for check in checks]},
        "attacks": [_finite(asdict(attempt)) for attempt in attempts],
    }
    return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def number(value: float) -> str:
    """Write a share or a loss so that both 0.3 and 1e-12 can be read."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if value >= 1e-3 or value == 0.0 else f"{value:.0e}"


def _as_json(found: Diagnosis, declared: Sequence[DeclaredDefense]) -> dict[str, Any]:
    numbers = {"residual": found.residual, "near_zero": found.near_zero, "expected_of_unknown_draws": found.expected}
    return {
        "outcome": found.outcome.value,
        "cause": found.cause,
        "sentences": sentences(found, declared),
        **_finite(numbers),
        "findings": [{**_finite(asdict(finding)), "evidence": finding.evidence.name} for finding in found.findings],
        "tensor_residuals": _finite(dict(found.tensor_residuals)),
    }


def _named(finding: Finding) -> str:
    return f"{finding.cause} ({finding.detail})"


def _declaration(best: Finding, declared: Sequence[DeclaredDefense]) -> list[str]:
    fitting = [defense.name for defense in declared if defense.name in _DECLARED_AS.get(best.cause, ())]
    if fitting:
        return [f"declared as {', '.join(fitting)}: an attack under the threat model known_defenses follows it"]
    if best.cause in _DECLARED_AS and not declared:
        return ["no defense is declared"]
    return []


def _least_explained(found: Diagnosis) -> str:
    ranked = sorted(found.tensor_residuals.items(), key=lambda item: -item[1])[:_WORST_TENSORS]
    return ", ".join(f"{name} {number(residual)}" for name, residual in ranked)


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with ``None`` for numbers that JSON cannot say."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
