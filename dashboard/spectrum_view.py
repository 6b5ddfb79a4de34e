"""The singular values of an update, and the N_c that a server reads from them. No truth is at hand here."""

import threading
from dataclasses import dataclass

from attacker.attack import DoesNotApplyError
from attacker.attack_worker import observe_update
from attacker.num_examples.trial import try_num_examples
from attacker.num_examples.weight_rank import Spectrum, weight_spectrum
from attacker.observation import NotGrantedError
from attacker.placement import in_place_of_update
from attacker.threat_models import HONEST_BUT_CURIOUS
from dashboard.file_cache import FileCache
from dashboard.run_index import UnknownRunError
from dashboard.run_reader import RunReader
from fl_sim.seeds import generator

_MOST_VALUES = 200
_VIEWS = FileCache(200)
# A spectrum takes a core for seconds: a page that asks for many gets them one after the other.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumView:
    """What one update says of its N_c.

    Attributes:
        values: The largest singular values of the first fully connected layer's update.
        num_values: How many there are in all.
        rounding: What floating-point numbers alone can make.
        directions: Values that stand out; ``None`` without such a layer.
        num_examples: N_c as it was read; ``None`` where nothing tells it.
        low: Lower end of its interval.
        high: Upper end.
        method: What it was read from.
        reason: Why there is no spectrum, or no N_c.
        stated: N_c as the client sent it in clear.
    """

    values: tuple[float, ...]
    num_values: int
    rounding: float | None
    directions: int | None
    num_examples: int | None
    low: int | None
    high: int | None
    method: str
    reason: str
    stated: int


def spectrum_view(reader: RunReader, server_round: int, client_id: int) -> SpectrumView:
    """Return what one update says of its N_c.

    Raises:
        UnknownRunError: If the update of this client is not stored by itself.
        RecordingError: If it is damaged.
    """
    if server_round not in reader.rounds() or client_id not in reader.kept_clients(server_round):
        raise UnknownRunError(f"the update of client {client_id} in round {server_round} is not stored by itself")
    path = reader.round_path(server_round)
    with _ONE_AT_A_TIME:
        return _VIEWS.get(f"spectrum {client_id}", path, lambda: _view(reader, server_round, client_id))


def _view(reader: RunReader, server_round: int, client_id: int) -> SpectrumView:
    recording = reader.run.recording
    observation = observe_update(recording.folder, server_round, [client_id], HONEST_BUT_CURIOUS.name)
    spectrum: Spectrum | None = None
    reason = ""
    try:
        spectrum = weight_spectrum(in_place_of_update(observation))
    except (DoesNotApplyError, NotGrantedError) as error:
        reason = str(error)
    trial = try_num_examples(observation, generator=generator(0, "attack", server_round, client_id))
    estimate = trial.estimate
    return SpectrumView(
        values=() if spectrum is None else tuple(spectrum.values[:_MOST_VALUES].tolist()),
        num_values=0 if spectrum is None else len(spectrum.values),
        rounding=None if spectrum is None else spectrum.rounding,
        directions=None if spectrum is None else spectrum.rank.directions,
        num_examples=None if estimate is None else estimate.num_examples,
        low=None if estimate is None else estimate.low,
        high=None if estimate is None else estimate.high,
        method="" if estimate is None else estimate.method,
        reason=trial.reason or reason,
        stated=recording.read_round(server_round, [client_id]).updates[0].num_examples,
    )
