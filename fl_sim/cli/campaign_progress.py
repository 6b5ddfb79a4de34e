"""Progress bars of a campaign: updates attacked, and the steps of every running attack."""

from collections.abc import Callable

from rich.progress import Progress as Bars
from rich.progress import TaskID

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.campaign import Plan, run_campaign
from attacker.campaign_observer import CampaignObserver, TaskFailure
from fl_sim.cli.terminal import errors, progress_bars
from fl_sim.config import AttackConfig


def show_campaign(plan: Plan, attack: AttackConfig, *, quiet: bool) -> tuple[TaskFailure, ...]:
    """Run a campaign with progress bars and return its failures."""
    if plan.finished and not quiet:
        errors.print(f"{len(plan.finished)} of {len(plan.finished) + len(plan.tasks)} attacks were finished before")
    with progress_bars(quiet=quiet) as bars:
        return run_campaign(plan, workers=attack.workers, gpu_share=attack.gpu_share, observer=_Bars(bars, plan))


class AttackBars:
    """A bar for each running attack, which goes when the attack ends."""

    def __init__(self, bars: Bars, describe: Callable[[ResultKey], str]) -> None:
        """Draw on these bars; ``describe`` names an attack."""
        self._bars = bars
        self._describe = describe
        self._running: dict[ResultKey, TaskID] = {}

    def show(self, key: ResultKey, progress: Progress) -> None:
        """Move an attack's bar."""
        if key not in self._running:
            self._running[key] = self._bars.add_task(self._describe(key), total=progress.num_steps, note="")
        note = f"matching loss {progress.matching_loss:.3g}"
        self._bars.update(self._running[key], completed=progress.step, total=progress.num_steps, note=note)

    def end(self, key: ResultKey) -> None:
        """Take an attack's bar away."""
        if key in self._running:
            self._bars.remove_task(self._running.pop(key))

    def fail(self, failure: TaskFailure) -> None:
        """Take an attack's bar away, and say why it failed."""
        self.end(failure.key)
        errors.print(f"[red]{self._describe(failure.key).strip()}: {failure.reason}[/]")


class _Bars(CampaignObserver):
    def __init__(self, bars: Bars, plan: Plan) -> None:
        self._bars = bars
        self._attacks = AttackBars(bars, _describe)
        total = len(plan.tasks) + len(plan.finished)
        self._all = bars.add_task("updates attacked", total=total, completed=len(plan.finished), note="")

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        self._attacks.show(key, progress)

    def on_finished(self, key: ResultKey) -> None:
        self._attacks.end(key)
        self._bars.advance(self._all)

    def on_failed(self, failure: TaskFailure) -> None:
        self._attacks.fail(failure)
        self._bars.advance(self._all)


def _describe(key: ResultKey) -> str:
    seed = f", seed {key.seed}" if key.seed else ""
    return f"round {key.server_round}, client {key.clients_text}{seed}"
