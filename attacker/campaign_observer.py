"""What those who watch a campaign are told."""

from dataclasses import dataclass

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.observation import NotGrantedError
from fl_sim.errors import FlSimError


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailure:
    """A task that ended without a result, and why."""

    key: ResultKey
    reason: str


class CampaignObserver:
    """Told what happens in a campaign; every method may be overridden."""

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        """A step of a running task."""

    def on_finished(self, key: ResultKey) -> None:
        """The result of a task is written."""

    def on_failed(self, failure: TaskFailure) -> None:
        """A task ended without a result."""


def failure_of(key: ResultKey, error: BaseException) -> TaskFailure:
    """Return why a task ended without a result, in words for a person."""
    reason = str(error) if isinstance(error, FlSimError | NotGrantedError) else f"{type(error).__name__}: {error}"
    return TaskFailure(key=key, reason=reason)
