"""``fl-sim reproduce``: a paper's table, measured again."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as Bars

from attacker.attack import Progress
from attacker.attack_store import ResultKey
from attacker.campaign_observer import TaskFailure
from fl_sim.cli.campaign_progress import AttackBars
from fl_sim.cli.options import QuietOption, WorkersOption, parse_workers
from fl_sim.cli.terminal import errors, output, progress_bars
from fl_sim.errors import ConfigError
from fl_sim.events import Event, EventKind
from fl_sim.files import write_bytes
from reproduction.campaign import Cell, ReproductionObserver, Request, cells_of, measure, missing_keys
from reproduction.data import PAPER_DATA
from reproduction.measurements import Measurement, MeasurementFile
from reproduction.rendering import csv_text, markdown, write_picture
from reproduction.summary import summarise
from reproduction.tables import Row, find_table


def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, …: of Data Leakage in Federated Averaging.")],
    data: Annotated[str, typer.Option(help="femnist_like or cifar100.")] = "femnist_like",
    clients: Annotated[int, typer.Option(min=1, help="Updates attacked in every cell.")] = 4,
    methods: Annotated[str | None, typer.Option(help="For instance ours_prior,shared; default: the paper's.")] = None,
    rows: Annotated[str | None, typer.Option(help="For instance E1_m5,E10_m5; default: all.")] = None,
    seeds: Annotated[str, typer.Option(help="Attack seeds, for instance 0,1.")] = "0",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps; default: the attack's.")] = None,
    workers: WorkersOption = None,
    folder: Annotated[Path, typer.Option("--output", help="Gets measurements, tables and pictures.")] = Path(
        "reproduced"
    ),
    data_folder: Annotated[Path, typer.Option(help="Where the data files lie.")] = Path("../shared/data"),
    measure_missing: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure what is missing, or only print what is there.")
    ] = True,
    quiet: QuietOption = False,
) -> None:
    """Measure a table of the paper with this platform, and print ours beside the paper's cells.

    What was measured before (measurements.jsonl in the output folder) is not measured again, so that the same command
    resumes, and a larger --clients adds to what is there. Full local training of CIFAR-100 takes hours on a CPU.

    Example: fl-sim reproduce table1 --rows E1_m5,E5_m5 --clients 4
    """
    request = _request(table, data, rows, methods, clients, seeds, steps)
    processes = parse_workers(workers)
    file = MeasurementFile(folder / "measurements.jsonl")
    failures: tuple[TaskFailure, ...] = ()
    if measure_missing:
        with progress_bars(quiet=quiet) as bars:
            observer = _Bars(bars, request, file)
            failures = measure(request, folder=folder, data_folder=data_folder, workers=processes, observer=observer)
    cells = summarise(request, file.read())
    text = markdown(request, cells, command=_command(table, data, rows, methods, clients, seeds, steps))
    stem = f"{table}-{data}{'' if steps is None else f'-{steps}-steps'}"
    write_bytes(folder / f"{stem}.md", text.encode())
    write_bytes(folder / f"{stem}.csv", csv_text(cells).encode())
    write_picture(folder / f"{stem}.png", request, cells)
    if not quiet:
        errors.print(text, highlight=False, markup=False, soft_wrap=True)
    output.print(str(folder / f"{stem}.md"), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _request(
    table_name: str,
    data_name: str,
    rows: str | None,
    methods: str | None,
    clients: int,
    seeds: str,
    steps: int | None,
) -> Request:
    """Check everything before anything is run."""
    table, data = find_table(table_name), PAPER_DATA[data_name]
    if data.paper not in table.data:
        raise ConfigError(f"{table_name} has no cells for {data_name}; it has them for {', '.join(table.data)}")
    known_rows = {row.name: row for row in table.rows}
    known_methods = table.methods(data.paper)
    chosen_rows = _names("--rows", rows, known_rows) or list(known_rows)
    chosen_methods = _names("--methods", methods, known_methods) or list(table.default_methods)
    at_most = data.num_clients // max(known_rows[name].cohort for name in chosen_rows)
    if clients > at_most:
        raise ConfigError(f"--clients: expected at most {at_most} for these rows of {data_name}, got {clients}")
    try:
        chosen_seeds = tuple(int(seed) for seed in seeds.split(","))
    except ValueError as error:
        raise ConfigError(f"--seeds: expected numbers such as 0,1, got {seeds!r}") from error
    return Request(
        table=table,
        data=data,
        rows=tuple(known_rows[name] for name in chosen_rows),
        methods={name: known_methods[name] for name in chosen_methods},
        clients=clients,
        seeds=chosen_seeds,
        steps=steps,
    )


def _command(
    table: str, data: str, rows: str | None, methods: str | None, clients: int, seeds: str, steps: int | None
) -> str:
    """Return the command that measures this very table, on any machine."""
    chosen = {"--rows": rows, "--methods": methods, "--steps": steps}
    options = {"--data": data, "--clients": clients, "--seeds": seeds}
    options |= {option: value for option, value in chosen.items() if value is not None}
    return shlex.join(["fl-sim", "reproduce", table, *(str(part) for pair in options.items() for part in pair)])


def _names(option: str, text: str | None, known: Mapping[str, object]) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}: expected some of {', '.join(known)}, got {name!r}")
    return names


class _Bars(ReproductionObserver):
    """One bar for all that is missing, weighted by cost, so that its time left is true; one for each running attack."""

    def __init__(self, bars: Bars, request: Request, file: MeasurementFile) -> None:
        missing = {id(cell): (cell.cost, len(missing_keys(cell, file))) for cell in cells_of(request)}
        self._num_missing = sum(count for _, count in missing.values())
        self._total_cost = sum(cost * count for cost, count in missing.values())
        self._bars = bars
        self._attacks = AttackBars(bars, lambda key: f"client {key.client_id}, seed {key.seed}")
        self._fractions: dict[ResultKey, float] = {}
        self._done = 0.0
        self._cell: Cell | None = None
        self._all = bars.add_task("everything", total=self._num_missing, note="")

    def on_federation(self, row: Row, events: Iterator[Event]) -> None:
        replies = self._bars.add_task(f"federation {row.name}", total=None, note="")
        for event in events:
            if event.kind is EventKind.ROUND_STARTED:
                self._bars.reset(replies, total=event.total)
                self._bars.update(replies, note=f"round {event.server_round} of {row.server_round}")
            elif event.kind is EventKind.REPLY_RECEIVED:
                self._bars.advance(replies)
        self._bars.remove_task(replies)

    def on_cell(self, cell: Cell, missing: int) -> None:
        self._cell = cell
        self._bars.update(self._all, note=f"{cell.row.name}, {cell.method}")

    def on_step(self, key: ResultKey, progress: Progress) -> None:
        self._attacks.show(key, progress)
        self._fractions[key] = progress.step / progress.num_steps
        self._show()

    def on_finished(self, key: ResultKey) -> None:
        self._fractions[key] = 1.0
        self._attacks.end(key)
        self._show()

    def on_failed(self, failure: TaskFailure) -> None:
        self._fractions[failure.key] = 1.0
        self._attacks.fail(failure)
        self._show()

    def on_measured(self, cell: Cell, measurements: tuple[Measurement, ...]) -> None:
        self._done += cell.cost * len(measurements)
        self._fractions.clear()
        self._show()
        for name, unit in (("psnr_db", "dB"), ("wrong_labels", "wrong labels")):
            values = [line.values[name] for line in measurements if name in line.values]
            if values:
                mean = sum(values) / len(values)
                errors.print(f"{cell.row.name}, {cell.method}: {mean:.1f} {unit} over {len(values)} attacks")
                return

    def _show(self) -> None:
        in_flight = 0.0 if self._cell is None else self._cell.cost * sum(self._fractions.values())
        share = (self._done + in_flight) / self._total_cost if self._total_cost else 1.0
        self._bars.update(self._all, completed=share * self._num_missing)
