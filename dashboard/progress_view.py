"""What is under way in a run, from the files that it writes: rounds, replies, attacks, time left."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from attacker.attack_store import ResultKey
from attacker.campaign_journal import CampaignEntry
from dashboard.file_cache import signature
from dashboard.run_reader import RunReader, Setting
from fl_sim.errors import FlSimError
from fl_sim.events import Event, EventKind
from fl_sim.run_lock import is_locked
from fl_sim.run_store import RunState

_MOST_WARNINGS = 5
_ROUNDS_OF_PACE = 10
_LEAST_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningView:
    """An attack under way."""

    key: str
    server_round: int
    clients: tuple[int, ...]
    seed: int
    step: int
    num_steps: int
    matching_loss: float | None
    has_snapshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedView:
    """An attack without a result, and why."""

    server_round: int
    clients: tuple[int, ...]
    seed: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignView:
    """Attacks of one setting that run, were interrupted, or failed.

    Attributes:
        label: The setting.
        attack: Its attack.
        state: ``running``, ``interrupted`` or ``ended``.
        total: Attacks of this campaign.
        finished: Those that are done.
        running: Those under way.
        failed: Those without a result.
        seconds_left: At the pace so far; ``None`` where nobody knows.
    """

    label: str
    attack: str
    state: str
    total: int
    finished: int
    running: tuple[RunningView, ...]
    failed: tuple[FailedView, ...]
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """A federation, running or not.

    Attributes:
        state: ``running``, ``killed``, ``finished`` or ``failed``.
        message: Why it failed.
        rounds_done: Recorded rounds.
        num_rounds: Rounds to be done; ``None`` where nobody said so yet.
        replies: That came in this round, failed ones included.
        asked: Clients that were asked in this round.
        seconds_left: Of the federation, at the pace of the last rounds.
        seconds: That it took, where it ended.
        warnings: The last ones.
    """

    state: str
    message: str
    rounds_done: int
    num_rounds: int | None
    replies: int
    asked: int | None
    seconds_left: float | None
    seconds: float | None
    warnings: tuple[str, ...]


def progress_view(reader: RunReader) -> ProgressView:
    """Return where a federation stands."""
    status, events, rounds = reader.run.status(), reader.events(), reader.rounds()
    # A moment's look at the lock, only where the run says that it is under way.
    killed = status.state is RunState.RUNNING and not is_locked(reader.run.folder)
    started = [event.total for event in events if event.kind is EventKind.FEDERATION_STARTED]
    num_rounds = started[-1] if started else None
    replies, asked = _replies(events)
    is_running = status.state is RunState.RUNNING and not killed
    return ProgressView(
        state="killed" if killed else status.state.value,
        message=status.message,
        rounds_done=len(rounds),
        num_rounds=num_rounds,
        replies=replies,
        asked=asked,
        seconds_left=_federation_left(reader, rounds, num_rounds) if is_running else None,
        seconds=status.seconds,
        warnings=tuple(
            f"round {event.server_round}: {event.message}"
            for event in events
            if event.kind in (EventKind.WARNING, EventKind.REPLY_FAILED)
        )[-_MOST_WARNINGS:],
    )


def _replies(events: Sequence[Event]) -> tuple[int, int | None]:
    replies, asked = 0, None
    for event in events:
        if event.kind is EventKind.ROUND_STARTED:
            replies, asked = 0, event.total
        elif event.kind in (EventKind.REPLY_RECEIVED, EventKind.REPLY_FAILED):
            replies += 1
    return replies, asked


def _federation_left(reader: RunReader, rounds: Sequence[int], num_rounds: int | None) -> float | None:
    """Return the seconds to the last round, at the pace at which the last rounds were written."""
    found = [signature(reader.round_path(number)) for number in rounds[-_ROUNDS_OF_PACE:]]
    times = [entry[0] / 1e9 for entry in found if entry is not None]
    if num_rounds is None or len(times) < 2:
        return None
    pace = statistics.fmean(later - earlier for earlier, later in pairwise(times))
    return max(0.0, pace * (num_rounds - len(rounds)) - (time.time() - times[-1]))


def campaign_views(reader: RunReader, settings: Sequence[Setting]) -> tuple[CampaignView, ...]:
    """Return the campaigns of these settings that run, were interrupted, or left something undone."""
    found: list[CampaignView] = []
    for setting in settings:
        try:
            entry = reader.campaign(setting)
        except FlSimError:
            continue  # of another version, or half of it: the results speak for themselves
        if entry is not None and (view := _campaign(reader, setting, entry)) is not None:
            found.append(view)
    return tuple(found)


def _campaign(reader: RunReader, setting: Setting, entry: CampaignEntry) -> CampaignView | None:
    is_alive = entry.is_alive
    if not is_alive:
        done = {key.folder_name for key in setting.store.finished()}
        failed = tuple(one for one in entry.failed if one.key not in done)
        if not failed and done.issuperset(entry.waiting):
            return None  # all of it was done in the end
        entry = replace(entry, failed=failed)
    return CampaignView(
        label=setting.label,
        attack=setting.attack.name,
        state="running" if is_alive else "ended" if entry.has_ended else "interrupted",
        total=entry.finished + len(entry.failed) + len(entry.waiting),
        finished=entry.finished,
        running=tuple(
            RunningView(
                key=one.key,
                server_round=key.server_round,
                clients=key.clients,
                seed=key.seed,
                step=one.step,
                num_steps=one.num_steps,
                matching_loss=one.matching_loss,
                has_snapshot=reader.snapshot(setting, key) is not None,
            )
            for one in (entry.running if is_alive else ())
            if (key := ResultKey.parse(one.key)) is not None
        ),
        failed=tuple(
            FailedView(server_round=key.server_round, clients=key.clients, seed=key.seed, reason=one.reason)
            for one in entry.failed
            if (key := ResultKey.parse(one.key)) is not None
        ),
        seconds_left=_campaign_left(entry) if is_alive else None,
    )


def _campaign_left(entry: CampaignEntry) -> float | None:
    """Return the seconds to the end, at the share of all steps that was done so far."""
    total = entry.finished + len(entry.failed) + len(entry.waiting)
    under_way = sum(one.step / max(1, one.num_steps) for one in entry.running)
    share = (entry.finished + len(entry.failed) + under_way) / max(1, total)
    elapsed = entry.updated - entry.started
    if share < _LEAST_SHARE or elapsed < 1.0:
        return None  # workers take their time to start, which says nothing of the rest
    return max(0.0, elapsed * (1.0 - share) / share - (time.time() - entry.updated))
