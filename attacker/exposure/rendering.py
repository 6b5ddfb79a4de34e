"""Exposure as CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from attacker.exposure.exposures import MEASURES, Exposure

NOTE = (
    "Computed with the truth, after the attacks had returned: private images score, and private data explain. No "
    "attacker could have drawn this up."
)


def csv_text(found: Exposure) -> str:
    """Return one line for each round and client, with the client's data beside what leaked."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    traits = {client.client_id: asdict(client.traits) for client in found.clients}
    names = list(next(iter(traits.values())))
    writer.writerow(["round", "client", *MEASURES, *names])
    for leak in found.leaks:
        values = [_cell(leak.values.get(name)) for name in MEASURES]
        own = [_cell(traits[leak.client_id][name]) for name in names]
        writer.writerow([leak.server_round, leak.client_id, *values, *own])
    return stream.getvalue()


def json_text(found: Exposure, *, setting: Mapping[str, Any]) -> str:
    """Return everything for programs.

    Args:
        found: What is written.
        setting: Which run and which attack.
    """
    content = {
        "note": NOTE,
        **setting,
        "rounds": [asdict(one) for one in found.rounds],
        "clients": [asdict(client) for client in found.clients],
        "explanations": [
            {"trait": trait, **({} if correlation is None else asdict(correlation))}
            for trait, correlation in found.explanations.items()
        ],
        "first_and_last_round": None if found.between_rounds is None else asdict(found.between_rounds),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
