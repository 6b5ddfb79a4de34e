"""Progress bars of a campaign: updates attacked, and the steps of every running attack."""

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


class _Bars(CampaignObserver):
    def __init__(self, bars: Bars, plan: Plan) -> None:
        self._bars = bars
        self._steps: dict[ResultKey, TaskID] = {}
        total = len(plan.tasks) + len(plan.finished)
        self._all = bars.add_task("updates attacked", total=total, completed=len(plan.finished), note="")

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        if key not in self._steps:
            seed = f", seed {key.seed}" if key.seed else ""
            description = f"round {key.server_round}, client {key.clients_text}{seed}"
            self._steps[key] = self._bars.add_task(description, total=progress.num_steps, note="")
        self._bars.update(
            self._steps[key],
            completed=progress.step,
            total=progress.num_steps,
            note=f"matching loss {progress.matching_loss:.3g}",
        )

    def on_finished(self, key: ResultKey) -> None:
        self._hide(key)
        self._bars.advance(self._all)

    def on_failed(self, failure: TaskFailure) -> None:
        self._hide(failure.key)
        self._bars.advance(self._all)
        key = failure.key
        errors.print(f"[red]round {key.server_round}, client {key.clients_text}: {failure.reason}[/]")

    def _hide(self, key: ResultKey) -> None:
        if key in self._steps:
            self._bars.remove_task(self._steps.pop(key))
