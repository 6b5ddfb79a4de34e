"""What can stand beside an attacked update: other attacks, rounds and runs on the same private images."""

from dataclasses import dataclass

from attacker.attack_store import ResultKey
from attacker.results import ResultSummary
from dashboard.run_index import RunIndex, RunPlace
from dashboard.run_reader import RunReader, Setting
from dashboard.run_view import defenses_text
from fl_sim.errors import FlSimError


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeView:
    """An attacked update on the same private images; ``kind`` is what it differs in."""

    run_id: str
    run_name: str
    defenses: str
    attack: str
    attack_name: str
    threat_model: str
    key: str
    server_round: int
    seed: int
    psnr_db: float | None
    kind: str


def alike_view(
    index: RunIndex, place: RunPlace, attack: str, key: ResultKey, *, sees_truth: bool
) -> tuple[AlikeView, ...]:
    """Return the attacked updates of the same clients: of this run, and of runs that divide the same data alike.

    Args:
        index: The runs.
        place: The run.
        attack: Label of the attack setting.
        key: The result.
        sees_truth: Without, nobody knows which other runs hold the same images.
    """
    reader = RunReader(place.store, sees_truth=sees_truth)
    found = _in_run(place, reader, attack, key, own=True)
    if not sees_truth or not reader.truth_key():
        return tuple(found)
    for other in index.places():
        if other.run_id == place.run_id:
            continue
        try:
            opened = RunReader(index.find(other.run_id).store, sees_truth=True)
            if opened.truth_key() == reader.truth_key():
                found += _in_run(other, opened, attack, key, own=False)
        except (FlSimError, OSError):
            continue  # a damaged run is named as such in the list
    return tuple(found)


def _in_run(place: RunPlace, reader: RunReader, attack: str, key: ResultKey, *, own: bool) -> list[AlikeView]:
    defenses = defenses_text(reader.manifest())
    return [
        _alike(place, defenses, setting, summary, _kind(setting, summary, attack, key) if own else "run")
        for setting in reader.settings()[0]
        for summary in reader.summaries(setting)[0]
        if summary.key.clients == key.clients and not (own and setting.label == attack and summary.key == key)
    ]


def _kind(setting: Setting, summary: ResultSummary, attack: str, key: ResultKey) -> str:
    if setting.label != attack:
        return "attack"
    return "round" if summary.key.server_round != key.server_round else "seed"


def _alike(place: RunPlace, defenses: str, setting: Setting, summary: ResultSummary, kind: str) -> AlikeView:
    return AlikeView(
        run_id=place.run_id,
        run_name=place.store.folder.name,
        defenses=defenses,
        attack=setting.label,
        attack_name=setting.attack.name,
        threat_model=setting.threat_model.name,
        key=summary.key.folder_name,
        server_round=summary.key.server_round,
        seed=summary.key.seed,
        psnr_db=None if summary.score is None else summary.score.mean_psnr_db,
        kind=kind,
    )
