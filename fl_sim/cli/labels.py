"""``fl-sim labels``: which classes each method of label recovery reads from the recorded updates, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from attacker.attack_worker import observe_update
from attacker.label_scores import WrongLabels, count_wrong, guess_label_counts, summarise
from attacker.label_trials import LabelTrial, try_label_recoveries
from attacker.labels import LABEL_RECOVERIES
from attacker.num_examples.trial import NumExamplesTrial, try_num_examples
from attacker.threat_models import HONEST_BUT_CURIOUS, THREAT_MODELS
from attacker.truth import Truth, read_truth
from fl_sim.cli.analysis import find_truth
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunArgument, RunsDirOption, find_run, parse_selection
from fl_sim.cli.terminal import errors, output, progress_bars
from fl_sim.config import Selection, is_selected
from fl_sim.errors import ConfigError
from fl_sim.files import write_json
from fl_sim.run_store import RunStore
from fl_sim.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class _Update:
    """One update, what every method made of it, and the truth where it is at hand."""

    server_round: int
    client_id: int
    num_examples: int
    trials: tuple[LabelTrial, ...]
    size: NumExamplesTrial
    true_counts: torch.Tensor | None = None
    guesses: dict[str, torch.Tensor] | None = None

    def wrong(self, trial: LabelTrial) -> int | None:
        """Return the wrong labels of a trial, or ``None`` where there is nothing to compare."""
        if self.true_counts is None or trial.counts is None:
            return None
        return count_wrong(self.true_counts, trial.counts)

    def wrong_guesses(self) -> dict[str, int]:
        """Return the wrong labels of each guess that does not look at the update."""
        if self.true_counts is None or self.guesses is None:
            return {}
        return {name: count_wrong(self.true_counts, counts.tolist()) for name, counts in self.guesses.items()}


def labels(
    run: RunArgument,
    rounds: Annotated[str | None, typer.Option("--round", "--rounds", help="For instance 1,3; default: all.")] = None,
    clients: Annotated[str | None, typer.Option("--client", "--clients", help="For instance 0,2.")] = None,
    methods: Annotated[str | None, typer.Option(help="Names of 'fl-sim list labels', for instance llg,rlu.")] = None,
    threat_model: Annotated[str, typer.Option(help="What is granted.")] = HONEST_BUT_CURIOUS.name,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the same as JSON.")] = None,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    quiet: QuietOption = False,
) -> None:
    """Recover the label counts of recorded updates with every method, and count the wrong labels.

    Beside the methods stand two guesses that do not look at the update. A second table shows what each update says of
    the number of images, N_c, to a server that is not told. Nothing of the run is changed.

    Example: fl-sim labels latest --round 1 --methods automatic,interpolated
    """
    store = find_run(run, runs_dir)
    names = list(LABEL_RECOVERIES) if methods is None else [name.strip() for name in methods.split(",")]
    for name in names:
        _ = LABEL_RECOVERIES[name]  # an unknown name is an error before anything is computed
    keys = _select(store, rounds, clients)
    grants_counts = THREAT_MODELS[threat_model].label_counts
    granted = read_truth(store.folder) if grants_counts else None
    found: list[_Update] = []
    with progress_bars(quiet=quiet) as bars:
        task = bars.add_task("updates", total=len(keys), note="")
        for server_round, client_id in keys:
            found.append(_try(store, server_round, client_id, names, threat_model, granted))
            bars.advance(task)
    # Every method has returned: only now is the truth looked at.
    truth, notices = find_truth(store)
    updates = found if truth is None else [_with_truth(update, truth) for update in found]
    if not quiet:
        for notice in notices:
            errors.print(f"[dim]{notice}[/]", highlight=False)
    output.print(_updates_table(updates, store.folder.name))
    for line in _refusals(updates):
        output.print(line, highlight=False, markup=False)
    output.print(_summary_table(updates, names, threat_model))
    output.print(_sizes_table(updates))
    if json_file is not None:
        write_json(json_file, _as_json(updates, names, threat_model, store))


def _select(store: RunStore, rounds: str | None, clients: str | None) -> list[tuple[int, int]]:
    """Return round and client of every stored update that is asked for."""
    recorded = store.recording.rounds()
    wanted_rounds: Selection = parse_selection(rounds, name="round") or "all"
    wanted_clients: Selection = parse_selection(clients, name="client") or "all"
    keys = [
        (server_round, client_id)
        for server_round in recorded
        if is_selected(wanted_rounds, server_round)
        for client_id in store.recording.kept_clients(server_round)
        if is_selected(wanted_clients, client_id)
    ]
    if not keys:
        if any(store.recording.aggregated_clients(server_round) for server_round in recorded):
            raise ConfigError(
                "secure aggregation hid single updates, and this command compares recoveries client by client; "
                "'fl-sim attack' attacks the mean"
            )
        raise ConfigError(
            f"no stored update matches --round {rounds or 'all'} and --client {clients or 'all'}; "
            f"stored rounds: {list(recorded) or 'none'}"
        )
    return keys


def _try(
    store: RunStore, server_round: int, client_id: int, names: Sequence[str], threat_model: str, granted: Truth | None
) -> _Update:
    observation = observe_update(
        store.recording.folder,
        server_round,
        [client_id],
        threat_model,
        label_counts=None if granted is None else granted.label_counts(client_id).unsqueeze(0),
    )
    # The stream of an attack with seed 0: what it makes of the labels is what stands here.
    trials = try_label_recoveries(observation, names, lambda: generator(0, "attack", server_round, client_id))
    return _Update(
        server_round=server_round,
        client_id=client_id,
        num_examples=store.recording.read_round(server_round, [client_id]).updates[0].num_examples,
        trials=trials,
        size=try_num_examples(observation, generator=generator(0, "attack", server_round, client_id)),
    )


def _with_truth(update: _Update, truth: Truth) -> _Update:
    return replace(
        update,
        true_counts=truth.label_counts(update.client_id),
        guesses=guess_label_counts(update.num_examples, truth.pool_label_counts(update.client_id)),
    )


def compact(counts: Sequence[int]) -> str:
    """Write label counts (K,) as ``0x2 3 7x4``: two images of class 0, one of class 3, four of class 7."""
    held = [(label, count) for label, count in enumerate(counts) if count]
    return " ".join(str(label) if count == 1 else f"{label}x{count}" for label, count in held)


def _updates_table(updates: Sequence[_Update], name: str) -> Table:
    table = Table(title=f"recovered labels: {name}", title_justify="left", box=box.SIMPLE)
    for heading in ("round", "client"):
        table.add_column(heading, justify="right")
    table.add_column("method", no_wrap=True)
    table.add_column("labels (class x count)", overflow="fold")
    for heading in ("wrong", "sec"):
        table.add_column(heading, justify="right")
    for update in updates:
        place = (str(update.server_round), str(update.client_id))
        if update.true_counts is not None:
            table.add_row(*place, "[bold]truth[/]", f"[bold]{compact(update.true_counts.tolist())}[/]", "", "")
        for trial in update.trials:
            if trial.counts is not None:
                wrong = update.wrong(trial)
                share = "–" if wrong is None else f"{wrong}/{update.num_examples}"
                table.add_row(*place, trial.method, compact(trial.counts), share, f"{trial.seconds:.2f}")
        table.add_section()
    return table


def _refusals(updates: Sequence[_Update]) -> list[str]:
    """Return a line for each method and reason, with the number of updates that it concerns."""
    reasons = [(trial.method, trial.reason) for update in updates for trial in update.trials if trial.reason]
    return [
        f"{method} does not apply to {reasons.count((method, reason))} of {len(updates)} updates: {reason}"
        for method, reason in dict.fromkeys(reasons)
    ]


def _summaries(updates: Sequence[_Update], names: Sequence[str]) -> dict[str, WrongLabels]:
    """Return the summary of each method and, after them, of each guess; nothing without the truth."""
    wrong: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for update in updates:
        for trial in update.trials:
            number = update.wrong(trial)
            if number is not None:
                wrong[trial.method].append((number, update.num_examples))
        for name, number in update.wrong_guesses().items():
            wrong.setdefault(f"guess: {name}", []).append((number, update.num_examples))
    return {name: summarise([n for n, _ in pairs], [total for _, total in pairs]) for name, pairs in wrong.items()}


def _summary_table(updates: Sequence[_Update], names: Sequence[str], threat_model: str) -> Table:
    realistic = "" if THREAT_MODELS[threat_model].realistic else ", an upper bound"
    table = Table(
        title=f"wrong labels, mean over updates ± standard error ({threat_model}{realistic})",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("method", no_wrap=True)
    for heading in ("wrong", "of", "updates"):
        table.add_column(heading, justify="right")
    for name, summary in _summaries(updates, names).items():
        error = "" if summary.standard_error is None else f" ± {summary.standard_error:.2f}"
        mean = "–" if summary.mean is None else f"{summary.mean:.2f}{error}"
        total = "–" if summary.mean_num_examples is None else f"{summary.mean_num_examples:g}"
        table.add_row(name, mean, total, f"{summary.num_updates}/{len(updates)}")
    return table


def _sizes_table(updates: Sequence[_Update]) -> Table:
    """Return N_c as the client says it beside N_c as its update says it."""
    table = Table(
        title="images of the client (N_c), as its update alone tells them", title_justify="left", box=box.SIMPLE
    )
    for heading in ("round", "client", "N_c", "estimated", "90 %"):
        table.add_column(heading, justify="right")
    table.add_column("from", overflow="fold")
    for update in updates:
        place = (str(update.server_round), str(update.client_id), str(update.num_examples))
        found = update.size.estimate
        if found is None:
            table.add_row(*place, "–", "", f"does not apply: {update.size.reason}")
        else:
            table.add_row(*place, str(found.num_examples), f"{found.low} to {found.high}", found.method)
    return table


def _as_json(updates: Sequence[_Update], names: Sequence[str], threat_model: str, store: RunStore) -> dict[str, Any]:
    granted = THREAT_MODELS[threat_model]
    return {
        "run": store.folder.name,
        "threat_model": granted.name,
        "realistic": granted.realistic,
        "granted": list(granted.granted()),
        "updates": [
            {
                "round": update.server_round,
                "client": update.client_id,
                "num_examples": update.num_examples,
                "num_examples_estimate": asdict(update.size),
                "label_counts": None if update.true_counts is None else update.true_counts.tolist(),
                "wrong_guesses": update.wrong_guesses(),
                "methods": [{**asdict(trial), "wrong": update.wrong(trial)} for trial in update.trials],
            }
            for update in updates
        ],
        "summary": [{"method": name, **asdict(summary)} for name, summary in _summaries(updates, names).items()],
    }
