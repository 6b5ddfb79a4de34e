"""Ours beside the paper's: means over clients and seeds, standard errors over clients, trivial baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from attacker.estimate import Estimate, estimate
from reproduction.campaign import Request, cells_of, stands_for
from reproduction.measurements import Measurement, MeasurementKey
from reproduction.paper import PaperCell, paper_cell


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryCell:
    """One row and one method.

    Attributes:
        row: Name of the row.
        method: Name of the method.
        clients: Clients measured so far.
        values: By the names of `Measurement.values`; empty where nothing is measured yet.
        paper: What the paper prints, or ``None``.
        days: Days on which it was measured, ISO 8601.
    """

    row: str
    method: str
    clients: int
    values: dict[str, Estimate]
    paper: PaperCell | None
    days: tuple[str, ...]


def summarise(request: Request, measured: Mapping[MeasurementKey, Measurement]) -> tuple[SummaryCell, ...]:
    """Return all cells of a request, row by row.

    Args:
        request: What was wanted.
        measured: All lines at hand.
    """
    cells = {(cell.row.name, cell.method): cell for cell in cells_of(request)}
    found: list[SummaryCell] = []
    for row in request.rows:
        for method in request.methods:
            keys = cells[row.name, stands_for(method, row, request)].keys
            by_client: dict[int, list[Measurement]] = {}
            for (client, _), key in keys.items():
                if key in measured:
                    by_client.setdefault(client, []).append(measured[key])
            found.append(
                SummaryCell(
                    row=row.name,
                    method=method,
                    clients=len(by_client),
                    values=_estimates(list(by_client.values())),
                    days=tuple(sorted({line.date for lines in by_client.values() for line in lines})),
                    paper=paper_cell(request.table.number, request.data.paper, row.name, method),
                )
            )
    return tuple(found)


def _estimates(clients: list[list[Measurement]]) -> dict[str, Estimate]:
    """Return means over clients; each client's value is the mean over its seeds."""
    by_name: dict[str, list[float]] = {}
    for lines in clients:
        for name in lines[0].values:
            by_name.setdefault(name, []).append(fmean(line.values[name] for line in lines if name in line.values))
    found = {name: estimate(means) for name, means in by_name.items()}
    return {name: value for name, value in found.items() if value is not None}
