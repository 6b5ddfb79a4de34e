"""``fl-sim report``: write the page of a run again."""

from fl_sim.cli.analysis import analyse
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunArgument, RunsDirOption, TensorboardOption, find_run
from fl_sim.cli.terminal import output


def report(
    run: RunArgument,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    tensorboard: TensorboardOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score what is unscored and write the page; the last line of standard output is its path.

    Example: fl-sim report latest
    """
    store = find_run(run, runs_dir)
    analyse(store, None, tensorboard=tensorboard, quiet=quiet)
    output.print(str(store.report_path), highlight=False, soft_wrap=True)
