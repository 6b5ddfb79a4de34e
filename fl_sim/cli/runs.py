"""``fl-sim runs``: which runs there are."""

from rich.table import Table

from attacker.results import read_results
from fl_sim.cli.options import DEFAULT_RUNS_DIR, RunsDirOption
from fl_sim.cli.terminal import errors, output
from fl_sim.errors import FlSimError
from fl_sim.run_lock import is_locked
from fl_sim.run_store import RunState, RunStore, list_runs


def runs(runs_dir: RunsDirOption = DEFAULT_RUNS_DIR) -> None:
    """List the runs of a folder, oldest first, with their state and the worst leak.

    Example: fl-sim runs --runs-dir runs
    """
    found = list_runs(runs_dir)
    if not found:
        errors.print(f"no runs in {str(runs_dir)!r}; 'fl-sim run' makes one", highlight=False)
        return
    table = Table()
    for heading in ("run", "state", "rounds", "accuracy", "attacked", "worst leak"):
        table.add_column(heading)
    for run in found:
        table.add_row(run.folder.name, *_describe(run))
    output.print(table)


def _describe(run: RunStore) -> tuple[str, ...]:
    try:
        evaluations = run.evaluations()
        accuracy = f"{evaluations[-1].accuracy:.1%}" if evaluations else "–"
        results = read_results(run)
        leaks = [result.score.mean_psnr_db for result in results if result.score and result.score.mean_psnr_db]
        worst = f"{max(leaks):.1f} dB" if leaks else "–"
        state = run.status().state
        if state is RunState.RUNNING and not is_locked(run.folder):
            state = "killed"  # 'fl-sim run --resume' goes on with it
        return state, str(len(run.recording.rounds())), accuracy, str(len(results)), worst
    except FlSimError as error:
        return "damaged", "", "", "", str(error)
