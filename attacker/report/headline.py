"""The one sentence at the top of the page, built from numbers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, TypeVar

from attacker.observation import ThreatModel
from attacker.report.content import AttackResult, ReportContent
from attacker.report.wording import count, decibel, percent
from attacker.scoring import Score


class Rankable(Protocol):
    """What can be ranked: a score, where there is one, and under which threat model."""

    @property
    def score(self) -> Score | None:
        """The comparison with the truth."""
        ...

    @property
    def threat_model(self) -> ThreatModel:
        """What was granted."""
        ...


Ranked = TypeVar("Ranked", bound=Rankable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What the page says first.

    Attributes:
        sentence: The finding.
        context: How it was chosen and what it is to be held against; may be empty.
        attack: The attack it speaks of, or ``None``.
    """

    sentence: str
    context: str
    attack: AttackResult | None


def write_headline(content: ReportContent) -> Headline:
    """Word the most revealing scored attack.

    Attacks under a realistic threat model come first: an upper bound makes the headline only where there is nothing
    else.
    """
    ranked = rank(content.attacks)
    if not content.attacks:
        return Headline(sentence="No update of this run has been attacked yet.", context="", attack=None)
    best = ranked[0]
    if best.score is None:
        return Headline(
            sentence=f"The server reconstructed images from {count(len(ranked), 'recorded update')}; "
            "how close they are is unknown.",
            context="The private images are not at hand, so nothing on this page is scored.",
            attack=best,
        )
    peers = [attack for attack in ranked if attack.score and attack.threat_model == best.threat_model]
    return Headline(sentence=_finding(best, best.score), context=_context(best.score, peers), attack=best)


def rank(attacks: Sequence[Ranked]) -> list[Ranked]:
    """Return the attacks, most revealing first: scored, realistic, by recovered share, then by mean PSNR."""

    def revealing(attack: Ranked) -> tuple[bool, bool, float, float]:
        if attack.score is None:
            return (False, attack.threat_model.realistic, 0.0, 0.0)
        score = attack.score
        return (True, attack.threat_model.realistic, score.recovered_share, score.mean_psnr_db or 0.0)

    return sorted(attacks, key=revealing, reverse=True)


def beats_guessing(score: Score) -> bool:
    """Return whether the attack is above every trivial baseline, in mean PSNR or in recovered share."""
    mean = score.mean_psnr_db
    return mean is not None and all(
        mean > baseline.mean_psnr_db or score.recovered_share > baseline.recovered_share for baseline in score.baselines
    )


def _finding(attack: AttackResult, score: Score) -> str:
    recovered = "none" if score.num_recovered == 0 else str(score.num_recovered)
    sentence = (
        f"From {_update(attack)} of round {attack.server_round} the server recovered {recovered} of "
        f"{count(score.num_images, 'image')} (PSNR above {score.threshold_db:g} dB); mean {decibel(score.mean_psnr_db)}"
    )
    baseline = score.best_baseline
    if baseline is not None:
        sentence += f", against {decibel(baseline.mean_psnr_db)} for the best trivial baseline"
    return sentence + "."


def _update(attack: AttackResult) -> str:
    if not attack.others:
        return f"client {attack.client_id}’s update"
    return f"the mean update of {1 + len(attack.others)} clients"


def _context(score: Score, peers: Sequence[AttackResult]) -> str:
    sentences: list[str] = []
    if score.baselines and not beats_guessing(score):
        sentences.append("That is no better than guessing without the update.")
    if len(peers) > 1:
        mean_share = fmean(peer.score.recovered_share for peer in peers if peer.score is not None)
        sentences.append(
            f"The most revealing of {len(peers)} scored attacks under this threat model; "
            f"on average they recovered {percent(mean_share)} of the images."
        )
    return " ".join(sentences)
