"""A running attack's images as they form."""

from dataclasses import dataclass

from attacker.attack_store import ResultKey
from dashboard.card_view import CurvePoint, thin_curve
from dashboard.pictures import SheetView, sheet_view
from dashboard.run_index import UnknownRunError
from dashboard.run_reader import RunReader, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """An attack at a step: its images, in its own order, and its matching loss so far."""

    attack: str
    key: str
    step: int
    num_steps: int
    sheet: SheetView
    curve: tuple[CurvePoint, ...]


def snapshot_view(reader: RunReader, setting: Setting, key: ResultKey) -> SnapshotView:
    """Return what a running attack has found so far.

    Raises:
        UnknownRunError: If it shows nothing.
        RecordingError: If the snapshot is damaged.
    """
    found = reader.snapshot(setting, key)
    if found is None:
        raise UnknownRunError("this attack shows no images: it has ended, or was started without --snapshots")
    return SnapshotView(
        attack=setting.label,
        key=key.folder_name,
        step=found.step,
        num_steps=found.num_steps,
        sheet=sheet_view(found.images),
        curve=thin_curve(found.losses.tolist()),
    )
