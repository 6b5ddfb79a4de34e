"""Updates that were recorded elsewhere become a recording: files in, a run folder out.

Everything is read and checked before the folder is made.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fl_sim.errors import ConfigError
from fl_sim.foreign_run import check_spec, create_foreign_run, foreign_model
from fl_sim.import_plan import ImportPlan, KnownUpdate, settle_data, settle_training
from fl_sim.messages import ModelLayout
from fl_sim.parameter_files import Fitted, fit, read_parameters
from fl_sim.recording_store import Manifest
from fl_sim.records import Algorithm, ClientUpdate, RoundRecord
from fl_sim.run_store import RunState, RunStatus, RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A recording that is not yet written.

    Attributes:
        manifest: What the server knew.
        model: The architecture.
        rounds: All that was given, by rising round.
        assumed: What had to be assumed.
    """

    manifest: Manifest
    model: nn.Module
    rounds: tuple[RoundRecord, ...]
    assumed: tuple[str, ...]


EstimateNumExamples = Callable[[Manifest, nn.Module, RoundRecord, ClientUpdate], tuple[int, str]]
"""Returns N_c as an update tells it, and how it was told."""


def read_import(plan: ImportPlan, *, estimate: EstimateNumExamples) -> Imported:
    """Read all files and match them with the model.

    Args:
        plan: What is known.
        estimate: Asked where N_c is not known.

    Raises:
        ConfigError: If a file, the model or a number does not fit; names it, what was expected, and what was got.
        MissingDataError: If a file is not there.
    """
    spec, assumed_data = settle_data(plan.data)
    check_spec(spec)
    training, assumed_training = settle_training(plan.training, plan.algorithm)
    part, model = foreign_model(plan.model.name, plan.model.options, spec)
    layout = ModelLayout.of(model)
    manifest = Manifest(
        model=part,
        dataset=spec,
        algorithm=plan.algorithm,
        local_training=training,
        parameters=tuple(layout.parameters),
        buffers=tuple(layout.buffers),
        num_clients=1 + max(update.client for update in plan.updates),
    )
    assumed = [*assumed_data, *assumed_training]
    by_round: defaultdict[int, list[KnownUpdate]] = defaultdict(list)
    for update in plan.updates:
        by_round[update.round].append(update)
    records: list[RoundRecord] = []
    for _, updates in sorted(by_round.items()):
        before = _read_weights(updates[0].before, model, layout, assumed)
        record = RoundRecord(
            server_round=updates[0].round,
            global_parameters=before.parameters,
            global_buffers=before.buffers,
            updates=(),
            failures=(),
        )
        replies: list[ClientUpdate] = []
        for update in sorted(updates, key=lambda own: own.client):
            reply = _read_reply(update, plan.algorithm, before, layout, assumed)
            if update.num_examples == "estimate":
                number, how = estimate(manifest, model, record, reply)
                assumed.append(f"N_c = {number} of client {reply.client_id} in round {reply.server_round}, {how}")
                reply = replace(reply, num_examples=number)
            replies.append(reply)
        records.append(replace(record, updates=tuple(replies)))
    return Imported(manifest=manifest, model=model, rounds=tuple(records), assumed=tuple(dict.fromkeys(assumed)))


def write_import(imported: Imported, *, name: str, runs_dir: Path) -> RunStore:
    """Make the run folder.

    Args:
        imported: What was read.
        name: Becomes part of the folder's name.
        runs_dir: Where runs live.
    """
    run = create_foreign_run(
        imported.manifest,
        name=name,
        runs_dir=runs_dir,
        num_rounds=max(record.server_round for record in imported.rounds),
        assumed=imported.assumed,
    )
    for record in imported.rounds:
        kept = {update.client_id for update in record.updates}
        run.recording.write_round(record, keep_clients=kept, keep_round=True)
    run.write_status(RunStatus(state=RunState.FINISHED))
    return run


def _read_weights(path: Path, model: nn.Module, layout: ModelLayout, assumed: list[str]) -> Fitted:
    fitted = fit(read_parameters(path), layout, where=str(path))
    if fitted.is_by_order:
        assumed.append(f"the arrays of {path.name} are in the order of the model's tensors (their shapes fit)")
    if fitted.has_buffers:
        return fitted
    assumed.append(f"{path.name} has no buffers: those of a new model ({', '.join(list(layout.buffers)[:2])}, …)")
    state = model.state_dict()
    return fitted.or_with_buffers({name: state[name].clone() for name in layout.buffers})


def _read_reply(
    update: KnownUpdate, algorithm: Algorithm, before: Fitted, layout: ModelLayout, assumed: list[str]
) -> ClientUpdate:
    path = update.gradient if update.after is None else update.after
    assert path is not None  # `KnownUpdate` has one of the two
    found = fit(read_parameters(path), layout, where=str(path), only_trainable=algorithm is Algorithm.FEDSGD)
    if found.is_by_order:
        assumed.append(f"the arrays of {path.name} are in the order of the model's tensors (their shapes fit)")
    if algorithm is Algorithm.FEDAVG and before.has_buffers != found.has_buffers:
        raise ConfigError(
            f"{path}: expected buffers in both files or in none, got them {'after' if found.has_buffers else 'before'} "
            "training only; write the whole state dict twice"
        )
    if layout.buffers and not found.buffers:
        assumed.append(
            "buffers after training are unknown and stand as those before: do not believe attacks that read BatchNorm "
            "statistics from a reply"
        )
    is_equal = all(bool((found.parameters[name] == tensor).all()) for name, tensor in before.parameters.items())
    if algorithm is Algorithm.FEDAVG and is_equal:
        raise ConfigError(f"{path}: holds the very weights of {update.before}: expected those after training")
    return ClientUpdate(
        server_round=update.round,
        client_id=update.client,
        num_examples=1 if update.num_examples == "estimate" else update.num_examples,
        algorithm=algorithm,
        tensors=found.parameters,
        # Of a gradient nothing is known but itself: the buffers are those that were sent.
        buffers=found.buffers if found.buffers or not before.buffers else before.buffers,
    )
