"""``fl-sim diagnose``: why did an attack fail? The truth replayed through the declared training, and what differs."""

from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from attacker.attack_worker import build_model, observe_update
from attacker.diagnosis.attempts import Attempt, compare_attempts
from attacker.diagnosis.consistency import Check, Sight, Status, check_consistency
from attacker.diagnosis.hypotheses import HYPOTHESES
from attacker.diagnosis.hypotheses.steps import most_epochs
from attacker.diagnosis.rendering import NOT_FINITE, NOTE, WITHOUT_TRUTH, attempt_sentence, json_text, number, sentences
from attacker.diagnosis.replay import DeclaredTraining, random_visits
from attacker.diagnosis.verdict import Diagnosis, Outcome, declared_training, diagnose
from attacker.results import Result, read_results
from attacker.threat_models import HONEST_BUT_CURIOUS
from attacker.truth import Truth
from fl_sim.cli.analysis import find_truth
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunArgument, RunsDirOption, find_run
from fl_sim.cli.terminal import errors, output, progress_bars
from fl_sim.errors import ConfigError
from fl_sim.files import write_bytes
from fl_sim.recording_store import Manifest
from fl_sim.records import ClientUpdate, DeclaredDefense, RoundRecord
from fl_sim.run_store import RunStore
from fl_sim.seeds import generator

_COMPARED_CLIENTS = 32
"""Replies of a round whose norms are compared; more would only take longer to read."""


def diagnose_update(
    run: RunArgument,
    server_round: Annotated[int | None, typer.Option("--round", help="Default: the first that is stored.")] = None,
    client: Annotated[int | None, typer.Option("--client", help="Default: the first that is stored.")] = None,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    quiet: QuietOption = False,
) -> None:
    """Say why an attack on a recorded update failed: a mismatch, by its name, or the optimisation.

    With the truth, the client's training is replayed; without it, only consistency is checked. Writes JSON.

    Example: fl-sim diagnose latest --round 1 --client 0
    """
    store = find_run(run, runs_dir)
    key = _chosen(store, server_round, client)
    manifest = store.recording.read_manifest()
    record, update = _read(store, *key)
    declared = [DeclaredDefense(name=part.name, options=part.options) for part in manifest.declared_defenses]
    checks = _checks(store, record, update)
    truth, notices = find_truth(store)
    found, attempts, note = None, (), WITHOUT_TRUTH
    if any(check.name == "finite" and check.status is not Status.FINE for check in checks):
        note = NOT_FINITE
    elif truth is not None:
        note = NOTE
        training = _training(truth, manifest, record, update)
        found = _diagnosed(training, update, quiet=quiet)
        delta = {name: tensor.double() for name, tensor in _delta(record, update, manifest).items()}
        attempts = compare_attempts(training, delta, _results(store, *key))
        if training.num_examples != update.num_examples:
            stated = f"the client states N_c = {update.num_examples}, and holds {training.num_examples} images"
            notices = (*notices, stated)
    path = store.folder / "diagnosis" / f"round-{key[0]}-client-{key[1]}.json"
    description = {"run": store.folder.name, "round": key[0], "client": key[1], "num_examples": update.num_examples}
    text = json_text(
        note=note, description=description, found=found, declared=declared, checks=checks, attempts=attempts
    )
    write_bytes(path, text.encode())
    if not quiet:
        for notice in notices:
            errors.print(f"[dim]{notice}[/]", highlight=False)
        _show(
            found, declared, checks, attempts, note=note, title=f"{store.folder.name}: round {key[0]}, client {key[1]}"
        )
    output.print(str(path), highlight=False, soft_wrap=True)


def _chosen(store: RunStore, server_round: int | None, client: int | None) -> tuple[int, int]:
    """Return round and client of the update that is asked for, or of the first one that fits."""
    recorded = store.recording.rounds()
    stored = {kept: store.recording.kept_clients(kept) for kept in recorded}
    for kept, clients in stored.items():
        for client_id in clients:
            if server_round in (None, kept) and client in (None, client_id):
                return kept, client_id
    if any(store.recording.aggregated_clients(kept) for kept in recorded):
        raise ConfigError("secure aggregation hid single updates, and this command looks at one client's update")
    asked = [
        f"{name} {value}" for name, value in (("--round", server_round), ("--client", client)) if value is not None
    ]
    rounds = [kept for kept, clients in stored.items() if clients]
    raise ConfigError(f"no stored update matches {' and '.join(asked) or 'at all'}; stored rounds: {rounds or 'none'}")


def _read(store: RunStore, server_round: int, client_id: int) -> tuple[RoundRecord, ClientUpdate]:
    """Return the round with the client's reply and some others."""
    others = [other for other in store.recording.kept_clients(server_round) if other != client_id]
    record = store.recording.read_round(server_round, [client_id, *others[: _COMPARED_CLIENTS - 1]])
    (update,) = [update for update in record.updates if update.client_id == client_id]
    return record, update


def _checks(store: RunStore, record: RoundRecord, update: ClientUpdate) -> tuple[Check, ...]:
    observation = observe_update(
        store.recording.folder, record.server_round, [update.client_id], HONEST_BUT_CURIOUS.name
    )
    return check_consistency(Sight(observation=observation, record=record, client_id=update.client_id))


def _training(truth: Truth, manifest: Manifest, record: RoundRecord, update: ClientUpdate) -> DeclaredTraining:
    private = truth.private_batch(update.client_id)
    recipe = manifest.local_training
    knows_order = truth.knows_order(update.client_id, recipe)
    num_epochs = most_epochs(recipe.epochs)
    if knows_order:
        visits = (truth.visits(update.client_id, record.server_round, recipe, epochs=num_epochs),)
    else:
        visits = random_visits(len(private.labels), num_epochs, generator(0, "diagnosis", update.client_id))
    return declared_training(
        model=build_model(manifest),
        dataset=manifest.dataset,
        record=record,
        recipe=recipe,
        images=private.images,
        labels=private.labels,
        visits=visits,
        knows_order=knows_order,
    )


def _diagnosed(training: DeclaredTraining, update: ClientUpdate, *, quiet: bool) -> Diagnosis:
    with progress_bars(quiet=quiet) as bars:
        task = bars.add_task("hypotheses", total=len(HYPOTHESES), note="replay")

        def advance(name: str) -> None:
            bars.update(task, note=name)
            bars.advance(task)

        found = diagnose(training, update.tensors, update.algorithm, on_hypothesis=advance)
        bars.update(task, completed=len(HYPOTHESES), note="")  # most are not needed where the update matches
        return found


def _delta(record: RoundRecord, update: ClientUpdate, manifest: Manifest) -> dict[str, torch.Tensor]:
    return update.delta(record.global_parameters, manifest.local_training.learning_rate)


def _results(store: RunStore, server_round: int, client_id: int) -> list[Result]:
    """Return the attacks on this very update, no mean with others."""
    return [
        result
        for result in read_results(store)
        if (result.key.server_round, result.key.clients) == (server_round, (client_id,))
        and result.setting.mean_of_rounds == 1
    ]


def _show(
    found: Diagnosis | None,
    declared: Sequence[DeclaredDefense],
    checks: Sequence[Check],
    attempts: Sequence[Attempt],
    *,
    note: str,
    title: str,
) -> None:
    output.print(f"[bold]{title}[/]", highlight=False)
    for line in [note] if found is None else sentences(found, declared):
        output.print(f"- {line}", highlight=False, markup=False)
    for one in attempts if found is not None and found.outcome is Outcome.MATCHES else ():
        output.print(f"- {attempt_sentence(one)}", highlight=False, markup=False)
    if declared:
        names = ", ".join(defense.name for defense in declared)
        output.print(f"- the clients declare {names}; the replay leaves it out", highlight=False, markup=False)
    if found is not None and found.findings:
        output.print(_findings_table(found))
    if attempts:
        output.print(_attempts_table(attempts))
    output.print(_checks_table(checks))
    if found is not None:
        errors.print(f"[dim]{note}[/]", highlight=False)


def _findings_table(found: Diagnosis) -> Table:
    table = _table("what explains it")
    for heading in ("cause", "evidence", "left"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what differs", overflow="fold")
    table.add_row("as declared", "", number(found.residual), "")
    for finding in found.findings:
        table.add_row(finding.cause, finding.evidence.name.lower(), number(finding.residual), finding.detail)
    table.caption = (
        f"left: share of the update's energy; at most {number(found.near_zero)} is nothing (exact). statistical: "
        "what is left is as large as the randomness that was found makes it."
    )
    return table


def _attempts_table(attempts: Sequence[Attempt]) -> Table:
    table = _table("what attacks found, beside the truth in the same matching")
    for heading in ("attack", "seed", "distance", "reported", "found", "truth", "PSNR"):
        table.add_column(heading, justify="left" if heading in ("attack", "distance") else "right")
    for one in attempts:
        psnr = "–" if one.mean_psnr_db is None else f"{one.mean_psnr_db:.1f}"
        losses = [number(value) for value in (one.recorded_loss, one.found, one.truth)]
        table.add_row(one.attack, str(one.seed), one.distance, *losses, psnr)
    table.caption = (
        "reported: by the attack, with its own labels, order and scale; found: its images and labels in the true "
        "order; truth: the private ones. PSNR in dB."
    )
    return table


def _checks_table(checks: Sequence[Check]) -> Table:
    table = _table("consistency, without the truth")
    for heading in ("check", "status"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what was seen", overflow="fold")
    for check in checks:
        bold = check.status in (Status.SUSPICIOUS, Status.IMPOSSIBLE)
        table.add_row(check.name, f"[bold]{check.status}[/]" if bold else str(check.status), check.detail)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
