"""What stands in a report, as plain values. Whoever reads a run folder fills this in; the page only draws it."""

from dataclasses import dataclass

from torch import Tensor

from attacker.observation import ThreatModel
from attacker.scoring import Score
from fl_sim.records import ReplyFailure
from fl_sim.run_store import RoundEvaluation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackResult:
    """One attacked update: what the server reconstructed and, where the truth is at hand, what it is worth.

    Attributes:
        server_round: The round, counted from 1.
        client_id: The client whose update was attacked.
        others: Further clients where the mean of several updates was attacked.
        attack: Name of the attack; results of one name are drawn as one series.
        setting: The name with a digest that differs wherever any option of the attack differs.
        seed: Seed of the attack.
        threat_model: What the attack was granted.
        outcome: How it ended, in words.
        seconds: Wall time.
        matching_loss: The final matching loss; need not be finite.
        losses: (T,), the matching loss by step; (0,) for closed-form attacks.
        reconstructions: (M, C, H, W), uint8 in [0, 255] or floats in [0, 1]; C is 1 or 3.
        recovered_labels: (M,), the class attributed to each reconstruction.
        private_images: (N, C, H, W), as ``reconstructions``; ``None`` where the truth is absent.
        labels: (N,), the true classes; ``None`` where the truth is absent.
        score: The comparison; ``None`` where it was not scored.
        options: Hyper-parameters of the attack, name and value in words.
        remarks: What the attack has to say about its result.
    """

    server_round: int
    client_id: int
    attack: str
    seed: int
    threat_model: ThreatModel
    outcome: str
    seconds: float
    matching_loss: float
    losses: Tensor
    reconstructions: Tensor
    recovered_labels: Tensor
    setting: str = ""
    private_images: Tensor | None = None
    labels: Tensor | None = None
    score: Score | None = None
    options: tuple[tuple[str, str], ...] = ()
    others: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def whose(self) -> str:
        """The client or the clients behind the update."""
        if not self.others:
            return f"client {self.client_id}"
        return f"clients {', '.join(map(str, (self.client_id, *self.others)))} (mean of their updates)"

    def __post_init__(self) -> None:
        """Check that truth and score come together and that their sizes fit."""
        where = f"round {self.server_round}, {self.whose}, attack {self.attack!r}, seed {self.seed}"
        _check_images(f"{where}: reconstructions", self.reconstructions)
        num_reconstructions = self.reconstructions.shape[0]
        if self.recovered_labels.shape != (num_reconstructions,):
            raise ValueError(
                f"{where}: recovered_labels must have shape ({num_reconstructions},), "
                f"got {tuple(self.recovered_labels.shape)}"
            )
        truth = (self.private_images, self.labels, self.score)
        if any(part is None for part in truth) and any(part is not None for part in truth):
            raise ValueError(f"{where}: private_images, labels and score must be given together or not at all")
        if self.private_images is None or self.labels is None or self.score is None:
            return
        _check_images(f"{where}: private_images", self.private_images)
        sizes = (self.private_images.shape[0], self.labels.shape[0], self.score.num_images)
        if len(set(sizes)) != 1:
            raise ValueError(f"{where}: private_images, labels and score must have one size, got {sizes}")
        if max(self.score.matching, default=0) >= num_reconstructions:
            raise ValueError(f"{where}: the score matches more than the {num_reconstructions} reconstructions given")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportContent:
    """All that a report shows.

    Attributes:
        run_name: Title of the page.
        created: When the page was made, in words.
        summary: The run in names and values: data set, model, parameters, algorithm, training, versions …
        evaluations: The global model by round.
        failures: Replies that did not come or could not be used.
        attacks: The attacked updates.
        class_names: (K,), a name for each class.
        label_skew: (clients, K), images of each class that each client holds; ``None`` where the truth is absent.
        commands: Shell commands that make the run again.
        notices: What a reader has to know about this page, one sentence each.
    """

    run_name: str
    created: str
    summary: tuple[tuple[str, str], ...] = ()
    evaluations: tuple[RoundEvaluation, ...] = ()
    failures: tuple[ReplyFailure, ...] = ()
    attacks: tuple[AttackResult, ...] = ()
    class_names: tuple[str, ...] = ()
    label_skew: Tensor | None = None
    commands: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def _check_images(where: str, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{where}: expected (N, 1 or 3, H, W), got {tuple(images.shape)}")
