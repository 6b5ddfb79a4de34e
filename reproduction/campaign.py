"""Measures what a table still lacks, cell by cell.

    row -> federation, recorded once -> for each method: attack the clients that have no line yet -> score -> lines

An interruption loses the attacks in flight and nothing else; the same command goes on.
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from attacker.attack_worker import observe_update
from attacker.campaign import plan_campaign, resolve_setting, run_campaign
from attacker.campaign_observer import CampaignObserver, TaskFailure
from attacker.label_scores import FREQUENCIES, guess_label_counts
from attacker.labels import LABEL_RECOVERIES
from attacker.results import Result, read_results, score_results, score_values
from attacker.scoring import count_label_errors
from attacker.truth import read_truth
from fl_sim.config import AttackConfig, Workers
from fl_sim.errors import MissingDataError
from fl_sim.events import Event
from fl_sim.run_store import RunStore, create_run, find_finished_run
from fl_sim.runtime import CLIENT_APP, run_federation
from fl_sim.seeds import generator
from reproduction.data import PaperData
from reproduction.experiments import describe, experiment_of
from reproduction.measurements import Measurement, MeasurementFile, MeasurementKey
from reproduction.methods import Method
from reproduction.tables import NUM_IMAGES, PaperTable, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be measured.

    Attributes:
        table: The table.
        data: Stands for the paper's data set.
        rows: Those to measure.
        methods: Those to measure, by name.
        clients: Updates attacked in each cell: those of the first so many reported clients, or of the first so many
            groups of clients.
        seeds: Of the attack.
        steps: Optimisation steps; ``None`` for the attack's default.
    """

    table: PaperTable
    data: PaperData
    rows: tuple[Row, ...]
    methods: dict[str, Method]
    clients: int
    seeds: tuple[int, ...]
    steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row and one method.

    Attributes:
        row: The setting.
        method: Name of the method that is run: the one asked for, or its equal at E = 1.
        attack: How the campaign is told.
        keys: The lines of this cell, by the federation's id of the (first) client and the seed.
        cost: Of one attack; only ratios between cells matter.
    """

    row: Row
    method: str
    attack: AttackConfig
    keys: dict[tuple[int, int], MeasurementKey]
    cost: float


class ReproductionObserver(CampaignObserver):
    """Told what happens; every method may be overridden."""

    def on_federation(self, row: Row, events: Iterator[Event]) -> None:
        """A federation runs; the events must be consumed."""
        for _ in events:
            pass

    def on_cell(self, cell: Cell, missing: int) -> None:
        """A cell is about to be measured."""

    def on_measured(self, cell: Cell, measurements: tuple[Measurement, ...]) -> None:
        """The lines of a cell are written."""


def cells_of(request: Request) -> tuple[Cell, ...]:
    """Return the cells of a request, each once."""
    cells = {
        (row.name, name): _cell(request, row, name)
        for row in request.rows
        for name in (stands_for(method, row, request) for method in request.methods)
    }
    return tuple(cells.values())


def stands_for(method: str, row: Row, request: Request) -> str:
    """Return the method that is measured for this one: itself, or its equal where there is one epoch only."""
    equal = request.methods[method].one_epoch if row.training.epochs == 1 else None
    return method if equal is None else equal


def missing_keys(cell: Cell, file: MeasurementFile) -> list[tuple[int, int]]:
    """Return the (client, seed) pairs of a cell that have no line."""
    measured = file.read()
    return [pair for pair, key in cell.keys.items() if key not in measured]


def measure(
    request: Request,
    *,
    folder: Path,
    data_folder: Path,
    workers: Workers,
    observer: ReproductionObserver,
) -> tuple[TaskFailure, ...]:
    """Measure what has no line yet.

    Args:
        request: What is wanted.
        folder: Gets ``measurements.jsonl``, and ``runs/`` with recordings and reconstructions.
        data_folder: Where the data files lie.
        workers: Processes; ``None`` takes one per core; ``"ray"`` a Ray cluster.
        observer: Told what happens.

    Returns:
        The attacks that failed.

    Raises:
        FederationError: If a federation did not finish.
        MissingDataError: If the data is not there.
    """
    if not (data_folder / request.data.file).exists():
        raise MissingDataError(
            f"{data_folder / request.data.file} does not exist; give the folder of {request.data.file} by --data-folder"
        )
    file = MeasurementFile(folder / "measurements.jsonl")
    failures: list[TaskFailure] = []
    for cell in cells_of(request):
        missing = missing_keys(cell, file)
        if not missing:
            continue
        run = _recording(cell.row, request.data, data_folder, folder / "runs", observer)
        observer.on_cell(cell, len(missing))
        if request.table.measures == "labels":
            found = tuple(_recover_labels(run, cell, missing))
        else:
            failed, found = _attack(run, cell, missing, request.data, workers, observer)
            failures += failed
        file.append(found)
        observer.on_measured(cell, found)
    return tuple(failures)


def _cell(request: Request, row: Row, name: str) -> Cell:
    method = request.methods[name] if name in request.methods else request.table.methods(request.data.paper)[name]
    steps = {} if request.steps is None else {"steps": request.steps}
    options = {} if request.table.measures == "labels" else {**request.table.options, **method.options, **steps}
    attack, threat_model, followed = method.attack, request.table.threat_model, row.training
    if row.batches_known and method.sees_batches:
        threat_model = "known_batch_label_counts"
    if row.assumed_epochs is not None:
        options = {"attack": attack, "options": options, "epochs": [row.assumed_epochs]}
        attack, threat_model = "epoch_search", "unknown_epochs_known_label_counts"
        followed = replace(followed, epochs=row.assumed_epochs)
    config = AttackConfig(
        name=attack,
        options=options,
        threat_model=threat_model,
        rounds=(row.server_round,),
        seeds=request.seeds,
        cohort=row.cohort,
    )
    together = "" if row.cohort == 1 else f" on the mean of {row.cohort} clients"
    revision = "" if method.revision == 1 else f" (revision {method.revision})"
    described = f"{threat_model}: {attack} {json.dumps(options, sort_keys=True)}{revision}{together}"
    keys = {
        (client, seed): MeasurementKey(
            federation=describe(row, request.data),
            server_round=row.server_round,
            client=request.data.first_client + client,
            attack=described,
            seed=seed,
        )
        for client in range(0, request.clients * row.cohort, row.cohort)
        for seed in request.seeds
    }
    return Cell(row=row, method=name, attack=config, keys=keys, cost=method.cost(followed, NUM_IMAGES * row.cohort))


def _recording(
    row: Row, data: PaperData, data_folder: Path, runs_dir: Path, observer: ReproductionObserver
) -> RunStore:
    experiment = experiment_of(row, data, data_folder)
    found = find_finished_run(experiment, runs_dir)
    if found is not None:
        return found
    run = create_run(experiment, runs_dir)
    # One process trains all clients: the updates are those of the Ray engine bit by bit, and it starts at once.
    with closing(run_federation(run, engine="inprocess", client_app=CLIENT_APP)) as events:
        observer.on_federation(row, events)
    return run


def _attack(
    run: RunStore,
    cell: Cell,
    missing: list[tuple[int, int]],
    data: PaperData,
    workers: Workers,
    observer: ReproductionObserver,
) -> tuple[tuple[TaskFailure, ...], tuple[Measurement, ...]]:
    # Clients that lack different seeds are rare enough for a campaign over all pairs of both; finished work is skipped.
    first, seeds = (sorted({pair[index] for pair in missing}) for index in (0, 1))
    clients = tuple(client + member for client in first for member in range(cell.row.cohort))
    config = replace(cell.attack, clients=clients, seeds=tuple(seeds))
    failures = run_campaign(plan_campaign(run, config), workers=workers, observer=observer)
    score_results(run, read_truth(run.folder), threshold_db=data.threshold_db)
    label = resolve_setting(config).label
    results = {
        (result.key.client_id, result.key.seed): result
        for result in read_results(run)
        if result.setting.label == label and result.key.server_round == cell.row.server_round
    }
    return failures, tuple(
        Measurement(key=cell.keys[pair], values=_values(results[pair]), date=_today())
        for pair in missing
        if pair in results
    )


def _recover_labels(run: RunStore, cell: Cell, missing: list[tuple[int, int]]) -> Iterator[Measurement]:
    truth = read_truth(run.folder)
    for client, seed in missing:
        started = time.monotonic()
        observation = observe_update(run.recording.folder, cell.row.server_round, [client], cell.attack.threat_model)
        if cell.attack.name == FREQUENCIES:
            guesses = guess_label_counts(observation.require_num_examples(), truth.pool_label_counts(client))
            counts = guesses[FREQUENCIES]
        else:
            stream = generator(seed, "attack", cell.row.server_round, client)
            counts = LABEL_RECOVERIES[cell.attack.name](observation, generator=stream)
        values = {
            "wrong_labels": float(count_label_errors(truth.label_counts(client), counts)),
            "seconds": round(time.monotonic() - started, 3),
        }
        yield Measurement(key=cell.keys[client, seed], values=values, date=_today())


def _values(result: Result) -> dict[str, float]:
    found = result.score
    if found is None:
        raise MissingDataError(f"{result.key.folder_name}: no score; the truth of the run is gone")
    values = {
        **score_values(found),
        "matching_loss": result.reconstruction.matching_loss,
        "seconds": result.reconstruction.seconds,
    }
    return {name: round(value, 6) for name, value in values.items()}


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
