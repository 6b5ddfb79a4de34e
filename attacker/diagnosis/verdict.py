"""Which hypothesis explains an update best, and what that means for an attack that failed on it."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from attacker.diagnosis.hypotheses import HYPOTHESES, LAST_RESORTS, OF_MATCHING_UPDATES
from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry, near_zero
from attacker.diagnosis.names import align
from attacker.diagnosis.replay import DeclaredTraining, replay
from attacker.diagnosis.residual import energy, relative_residual, tensor_residuals
from fl_sim.records import Algorithm, DatasetSpec, LocalTraining, RoundRecord

_WORTH_NAMING = 0.5
"""A hypothesis that leaves more than this share of the residual, or of the update, explains nothing worth naming."""
_FAR = 10.0
_NAMES = ("missing", "renamed", "transposed", "unexpected")


class Outcome(StrEnum):
    """What the diagnosis says."""

    MATCHES = "matches"
    """The update is what the declared training gives: optimisation is the limit. A finding is a harmless one."""
    MISMATCH = "mismatch"
    """The update is something else, and it is known what."""
    PARTLY = "partly explained"
    """The update is something else; the first finding explains most of it, and not all."""
    UNEXPLAINED = "unexplained"
    """The update is something else, and no hypothesis says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found about one update.

    Attributes:
        outcome: What it comes to.
        residual: Share of the update's energy that the declared training does not explain.
        near_zero: Below this share nothing is left to explain.
        expected: Share of the energy by which two draws of what is not known differ; 0 where all is known.
        findings: The best explanation first; those that explain nothing are left out.
        tensor_residuals: By tensor, share of its own energy that the declared training does not explain.
    """

    outcome: Outcome
    residual: float
    near_zero: float
    expected: float
    findings: tuple[Finding, ...]
    tensor_residuals: Mapping[str, float]

    @property
    def cause(self) -> str | None:
        """The name of what explains the update best; ``None`` where nothing was found that needs to, or does."""
        return self.findings[0].cause if self.findings and self.outcome is not Outcome.UNEXPLAINED else None

    @property
    def alike(self) -> tuple[Finding, ...]:
        """Further findings that explain the update as exactly as the first one, or as well as unknown draws allow."""
        best = self.findings[0].evidence
        if best is Evidence.PARTIAL or (best is Evidence.STATISTICAL and not self.expected):
            return ()
        return tuple(
            finding
            for finding in self.findings[1:]
            if finding.evidence is best and finding.cause not in _NAMES and self.findings[0].cause not in _NAMES
        )


def declared_training(
    *,
    model: nn.Module,
    dataset: DatasetSpec,
    record: RoundRecord,
    recipe: LocalTraining,
    images: Tensor,
    labels: Tensor,
    visits: tuple[Tensor, ...],
    knows_order: bool,
) -> DeclaredTraining:
    """Put together what is replayed; nothing given is changed.

    Args:
        model: The architecture.
        dataset: Public facts of the data.
        record: The round, which gives w_t.
        recipe: As declared.
        images: (N, C, H, W), the true ones, pixels in [0, 1].
        labels: (N,), int64.
        visits: See `DeclaredTraining`.
        knows_order: Likewise.
    """
    names = [name for name, _ in model.named_parameters()]
    return DeclaredTraining(
        model=copy.deepcopy(model).double().train(),
        weights={name: record.global_parameters[name].detach().double() for name in names},
        buffers={name: _in_double(tensor) for name, tensor in record.global_buffers.items()},
        images=images.double(),
        labels=labels,
        mean=torch.tensor(dataset.mean, dtype=torch.float64).reshape(-1, 1, 1),
        std=torch.tensor(dataset.std, dtype=torch.float64).reshape(-1, 1, 1),
        recipe=recipe,
        visits=visits,
        knows_order=knows_order,
    )


def diagnose(
    training: DeclaredTraining,
    sent: Mapping[str, Tensor],
    algorithm: Algorithm,
    *,
    on_hypothesis: Callable[[str], None] = lambda name: None,
) -> Diagnosis:
    """Replay the declared training and, where it does not explain the update, try all hypotheses.

    Args:
        training: What the client is said to have done, on the images that it really has.
        sent: What was received, by the names under which it was: weights (FedAvg) or a gradient (FedSGD).
        algorithm: Says which.
        on_hypothesis: Told the name of each hypothesis before it is tried.
    """
    plain = replay(training, training.declared())
    aligned = align(sent, plain.delta, training, algorithm)
    inquiry = Inquiry(
        training=training,
        algorithm=algorithm,
        sent=aligned.sent,
        delta=aligned.delta,
        plain=plain,
        residual=relative_residual(plain.delta, aligned.delta),
        near_zero=near_zero(training, aligned.delta, algorithm),
    )
    structure = [_of_names(inquiry, cause, remark) for cause, remark in aligned.remarks.items()]
    found: list[Finding] = []
    for name in OF_MATCHING_UPDATES if inquiry.matches else (*_first_resorts(), *LAST_RESORTS):
        if name in LAST_RESORTS and any(finding.evidence is Evidence.EXACT for finding in found):
            continue
        on_hypothesis(name)
        found.extend(HYPOTHESES[name](inquiry))
    is_random = inquiry.evidence(inquiry.residual, plain.variance) is Evidence.STATISTICAL
    by_residual = (Evidence.PARTIAL, Evidence.STATISTICAL) if plain.variance else (Evidence.PARTIAL,)
    worthy = _without_vague([finding for finding in found if _is_worthy(finding, inquiry, is_random=is_random)])
    findings = (*structure, *sorted(worthy, key=lambda finding: _rank(finding, by_residual)))
    return Diagnosis(
        outcome=_outcome(inquiry, findings),
        residual=inquiry.residual,
        near_zero=inquiry.near_zero,
        expected=plain.variance / (energy(aligned.delta) or 1.0),
        findings=findings,
        tensor_residuals=tensor_residuals(plain.delta, aligned.delta),
    )


def _first_resorts() -> list[str]:
    return [name for name in HYPOTHESES if name not in LAST_RESORTS]


def _of_names(inquiry: Inquiry, cause: str, remark: str) -> Finding:
    return Finding(
        cause=cause,
        detail=f"{cause}: {remark}; the rest is compared",
        residual=inquiry.residual,
        evidence=inquiry.evidence(inquiry.residual, inquiry.plain.variance),
    )


def _is_worthy(finding: Finding, inquiry: Inquiry, *, is_random: bool) -> bool:
    """Say whether a finding explains something that the declared training, or its known randomness, leaves."""
    if is_random:
        return finding.evidence is Evidence.EXACT
    if finding.evidence is Evidence.STATISTICAL:
        # The mean of other orders may be further away than the declared one is, and one of them be the client's.
        return finding.residual <= inquiry.residual or not inquiry.plain.variance
    return finding.evidence is Evidence.EXACT or finding.residual <= _WORTH_NAMING * min(inquiry.residual, 1.0)


def _without_vague(findings: list[Finding]) -> list[Finding]:
    """Leave out an order that would explain anything of its size, where another cause leaves far less than it."""
    closest = min((one.residual for one in findings if one.evidence is Evidence.PARTIAL), default=math.inf)
    return [
        one
        for one in findings
        if one.cause != "batch_order" or one.evidence is Evidence.EXACT or one.residual <= _FAR * closest
    ]


def _rank(finding: Finding, by_residual: tuple[Evidence, ...]) -> tuple[int, int, float, int]:
    position = list(HYPOTHESES).index(finding.cause)
    return (
        finding.evidence,
        finding.num_fitted if finding.evidence is Evidence.EXACT else 0,
        finding.residual if finding.evidence in by_residual else 0.0,
        position,
    )


def _outcome(inquiry: Inquiry, findings: tuple[Finding, ...]) -> Outcome:
    evidence = findings[0].evidence if findings else None
    if inquiry.matches and not any(finding.cause in _NAMES for finding in findings):
        return Outcome.MATCHES
    if evidence is Evidence.EXACT or (evidence is Evidence.STATISTICAL and findings[0].cause in _NAMES):
        return Outcome.MISMATCH
    if inquiry.evidence(inquiry.residual, inquiry.plain.variance) is not Evidence.PARTIAL:
        return Outcome.MATCHES
    if evidence is Evidence.STATISTICAL:
        return Outcome.MISMATCH
    return Outcome.UNEXPLAINED if evidence is None else Outcome.PARTLY


def _in_double(tensor: Tensor) -> Tensor:
    """Return a buffer in float64; counts of batches stay what they are."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
