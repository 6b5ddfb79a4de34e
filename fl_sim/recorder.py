"""The recorder for any Flower app: one line around the strategy of somebody's own ServerApp.

    strategy = record(FedAvg(), model=Net, data={...}, training={...})

It listens where messages leave and replies arrive, at the grid that ``strategy.start`` is given, so that it sees raw
replies whatever the strategy does with them, its own ``start`` included. It delegates every call unchanged. What goes
wrong in the recorder is said in the log and in the run's status, and never stops the federation.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fl_sim.delegation import WrappedGrid, WrappedStrategy
from fl_sim.errors import ConfigError, brief
from fl_sim.events import Event, EventKind, append_event
from fl_sim.foreign_messages import ClientNumbers, ForeignMessages, same_arrays
from fl_sim.foreign_run import check_spec, create_foreign_run, foreign_model
from fl_sim.import_plan import KnownData, KnownTraining, settle_data, settle_training
from fl_sim.messages import BadReplyError, ModelLayout
from fl_sim.options import parse_dataclass
from fl_sim.parameter_files import Fitted
from fl_sim.recording import round_record
from fl_sim.recording_store import Manifest
from fl_sim.records import Algorithm, ClientUpdate
from fl_sim.run_lock import locked
from fl_sim.run_store import RunState, RunStatus, RunStore

_log = logging.getLogger("flwr.fl_sim")  # below Flower's own logger, which an app's log shows


def record(
    strategy: Strategy,
    *,
    model: str | Callable[..., nn.Module],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    folder: Path | str = "runs",
    name: str = "flower",
    algorithm: str = "fedavg",
    client_key: str | None = None,
    num_examples_key: str | None = None,
    arrays_key: str | None = None,
) -> "RecordedStrategy":
    """Record what a Flower server sees, and change nothing.

    Args:
        strategy: Any strategy of Flower, or one's own; this must be the outermost wrapper.
        model: What is trained: ``"package.module:Net"``, the class or function itself, or a name of MODELS.
        data: Public facts: ``image_shape``, ``num_classes``, and ``mean`` and ``std`` if the input is normalised.
        training: What is known of local training: ``learning_rate``, ``epochs``, ``batch_size`` and so on, see
            `fl_sim.import_plan.KnownTraining`. What is left out is assumed, and the assumption is written down.
        arguments: Of the model.
        folder: Where runs live; relative paths start where the server process was started.
        name: Becomes part of the run folder's name.
        algorithm: ``"fedavg"`` where clients send weights, ``"fedsgd"`` where they send gradients.
        client_key: A metric in which clients say their number (0, 1, …); ``None`` numbers them as they appear.
        num_examples_key: The metric that holds N_c; ``None`` asks the strategy, then takes ``"num-examples"``.
        arrays_key: The ArrayRecord with the model, where messages have several.

    Returns:
        A strategy to start in place of the given one; its ``run`` is the run folder once training has begun.

    Raises:
        ConfigError: If the model cannot be built or a fact does not fit; nothing has been trained yet.
    """
    try:
        sends = Algorithm(algorithm)
    except ValueError as error:
        raise ConfigError(f"algorithm: expected 'fedavg' or 'fedsgd', got {algorithm!r}") from error
    spec, assumed_data = settle_data(parse_dataclass(KnownData, data))
    check_spec(spec)
    recipe, assumed_training = settle_training(parse_dataclass(KnownTraining, training), sends)
    part, network = foreign_model(_reference(model), arguments or {}, spec)
    layout = ModelLayout.of(network)
    manifest = Manifest(
        model=part,
        dataset=spec,
        algorithm=sends,
        local_training=recipe,
        parameters=tuple(layout.parameters),
        buffers=tuple(layout.buffers),
        num_clients=1,
    )
    messages = ForeignMessages(
        layout=layout,
        algorithm=sends,
        num_examples_key=num_examples_key or _weight_key(strategy),
        client_key=client_key,
        arrays_key=arrays_key,
    )
    assumed = (*assumed_data, *assumed_training)
    return RecordedStrategy(strategy, _Recorder(manifest, network, messages, assumed, Path(folder), name))


class RecordedStrategy(WrappedStrategy):
    """A strategy, unchanged, whose messages are overheard; made by `record`."""

    def __init__(self, strategy: Strategy, recorder: "_Recorder") -> None:
        """Wrap a strategy."""
        super().__init__(strategy)
        self._recorder = recorder

    @property
    def run(self) -> RunStore | None:
        """The run folder; ``None`` before the first training message, or where it could not be made."""
        return self._recorder.run

    @property
    def faults(self) -> tuple[str, ...]:
        """What could not be recorded, and why."""
        return tuple(self._recorder.faults)

    def __getattr__(self, name: str) -> Any:
        """Delegate whatever else somebody's own strategy has."""
        if name.startswith("__") or name == "strategy":
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy's own ``start`` on a grid that is overheard; arguments as for `Strategy.start`."""
        planned = kwargs.get("num_rounds", args[1] if len(args) > 1 else None)
        with self._recorder.listening(planned) as recorder:
            result = self.strategy.start(ListeningGrid(grid, recorder), *args, **kwargs)
            recorder.end(result)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate; and say so where nobody listens, because ``start`` was not called."""
        if not isinstance(grid, ListeningGrid):
            self._recorder.report("record(…) must be the outermost strategy, and started: nothing is recorded")
        return super().configure_train(server_round, arrays, config, grid)


class ListeningGrid(WrappedGrid):
    """Any grid, unchanged; the recorder is shown the training messages and their replies."""

    def __init__(self, grid: Grid, recorder: "_Recorder") -> None:
        """Wrap a grid."""
        super().__init__(grid)
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        """Delegate what an engine's grid has beyond Flower's interface."""
        if name.startswith("__") or name == "_grid":
            raise AttributeError(name)
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Delegate, and show the recorder what is sent for training and what comes back."""
        sent = list(messages)
        is_training = bool(sent) and sent[0].metadata.message_type.split(".")[0] == "train"
        if is_training:
            self._recorder.start_round(sent)
        replies = list(super().send_and_receive(sent, timeout=timeout))
        if is_training:
            self._recorder.end_round(sent, replies)
        return replies


class _Recorder:
    """Writes down what it is shown. No method raises: a fault is reported, and the federation goes on."""

    def __init__(
        self,
        manifest: Manifest,
        network: nn.Module,
        messages: ForeignMessages,
        assumed: tuple[str, ...],
        folder: Path,
        name: str,
    ) -> None:
        self.run: RunStore | None = None
        self.faults: list[str] = []
        self._manifest = manifest
        self._initial_buffers = {key: network.state_dict()[key].clone() for key in messages.layout.buffers}
        self._messages = messages
        self._assumed = list(assumed)
        self._folder = folder
        self._name = name
        self._numbers = ClientNumbers(messages)
        self._round = 0
        self._sent: Fitted | None = None
        self._num_rounds: int | None = None
        self._started = time.monotonic()
        self._stack = ExitStack()

    def listening(self, num_rounds: object) -> "_Recorder":
        self._num_rounds = num_rounds if isinstance(num_rounds, int) and num_rounds > 0 else None
        self._started = time.monotonic()
        return self

    def __enter__(self) -> "_Recorder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self.run is None:
            return
        message = "; ".join(self.faults) if error is None else f"{type(error).__name__}: {error}"
        state = RunState.FAILED if message else RunState.FINISHED
        status = RunStatus(state=state, message=message, seconds=time.monotonic() - self._started)
        self._guarded("the status", lambda run: run.write_status(status))
        self._stack.close()

    def report(self, fault: str) -> None:
        if fault not in self.faults:
            self.faults.append(fault)
            _log.error("fl_sim recorder: %s; the federation goes on", fault)

    def start_round(self, sent: list[Message]) -> None:
        self._round += 1
        self._sent = None
        try:
            arrays = self._messages.arrays(sent[0])
            fitted = self._messages.read_sent(arrays)
            if self.run is None:
                self._begin(fitted, num_clients=len(sent))
            self._sent = fitted.or_with_buffers(self._initial_buffers)
            self._tell(Event(kind=EventKind.ROUND_STARTED, server_round=self._round, total=len(sent)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the federation is not ours to stop
            self._report_round(error)

    def end_round(self, sent: list[Message], replies: list[Message]) -> None:
        if self._sent is None or self.run is None:
            return  # reported when the round began
        try:
            self._numbers.learn(sent, replies)
            self._write(self.run, self._sent, sent, replies)
        except Exception as error:  # noqa: BLE001 - likewise
            self._report_round(error)

    def end(self, result: object) -> None:
        arrays = getattr(result, "arrays", None)
        if arrays:
            self._guarded("the final model", lambda run: self._write_final(run, arrays))
        self._tell(Event(kind=EventKind.FEDERATION_FINISHED, server_round=self._round))

    def _begin(self, sent: Fitted, *, num_clients: int) -> None:
        if sent.is_by_order:
            self._assumed.append("arrays are numbered in the order of the model's state dict (their shapes fit)")
        if not sent.has_buffers:
            self._assumed.append("the app sends no buffers: those of a new model")
        if self._messages.client_key is None:
            self._assumed.append("clients are numbered as they appeared, nodes by rising id")
        self.run = create_foreign_run(
            self._with_clients(num_clients),
            name=self._name,
            runs_dir=self._folder,
            num_rounds=self._num_rounds or 1,
            assumed=self._assumed,
        )
        self._stack.enter_context(locked(self.run.folder))
        self._tell(Event(kind=EventKind.FEDERATION_STARTED, server_round=0, total=self._num_rounds or 0))
        _log.info("fl_sim recorder: %s", self.run.folder)

    def _write(self, run: RunStore, fitted: Fitted, sent: list[Message], replies: list[Message]) -> None:
        common = self._messages.arrays(sent[0])
        numbered: list[tuple[Message, int]] = []
        for message in sent:
            number = self._numbers.numbers.get(message.metadata.dst_node_id)
            if number is None:
                self._warn(f"node {message.metadata.dst_node_id} has not said which client it is; left out")
            else:
                numbered.append((message, number))
        different = {number for message, number in numbered if not same_arrays(self._messages.arrays(message), common)}

        def read(reply: Message, client_id: int) -> ClientUpdate:
            if client_id in different:
                raise BadReplyError("was sent other weights than the first client of the round; not recorded")
            return self._messages.read_reply(reply, server_round=self._round, client_id=client_id, sent=fitted)

        found = round_record(self._round, fitted.parameters, fitted.buffers, numbered, replies, read)
        run.recording.write_round(found, keep_clients={one.client_id for one in found.updates}, keep_round=True)
        num_clients = 1 + max(self._numbers.numbers.values(), default=0)
        if num_clients > self._manifest.num_clients:
            run.recording.write_manifest(self._with_clients(num_clients))
        for failure in found.failures:
            self._warn(f"client {failure.client_id}: {brief(failure.reason)}", kind=EventKind.REPLY_FAILED)
        self._tell(Event(kind=EventKind.ROUND_RECORDED, server_round=self._round, failures=len(found.failures)))

    def _with_clients(self, num_clients: int) -> Manifest:
        self._manifest = replace(self._manifest, num_clients=num_clients)
        return self._manifest

    def _write_final(self, run: RunStore, arrays: ArrayRecord) -> None:
        fitted = self._messages.read_sent(arrays).or_with_buffers(self._initial_buffers)
        run.recording.write_final(fitted.parameters, fitted.buffers)

    def _report_round(self, error: Exception) -> None:
        self.report(f"round {self._round} was not recorded: {type(error).__name__}: {brief(error)}")

    def _warn(self, message: str, *, kind: EventKind = EventKind.WARNING) -> None:
        _log.warning("fl_sim recorder: round %d: %s", self._round, message)
        self._tell(Event(kind=kind, server_round=self._round, message=message))

    def _tell(self, event: Event) -> None:
        self._guarded("events", lambda run: append_event(run.events_path, event))

    def _guarded(self, what: str, write: Callable[[RunStore], None]) -> None:
        if self.run is None:
            return
        try:
            write(self.run)
        except Exception as error:  # noqa: BLE001 - likewise
            self.report(f"{what} could not be written: {type(error).__name__}: {brief(error)}")


def _reference(model: str | Callable[..., nn.Module]) -> str:
    if isinstance(model, str):
        return model
    module, name = getattr(model, "__module__", "__main__"), getattr(model, "__qualname__", "<instance>")
    if module == "__main__" or "<" in name or "." in name:
        raise ConfigError(
            f"model: expected a class or a function at the top of a module that can be imported, or its name as text, "
            f"got {name!r} of {module!r}"
        )
    return f"{module}:{name}"


def _weight_key(strategy: Any) -> str:
    """Return the key by which a strategy weights replies, that of a strategy inside it included."""
    while strategy is not None:
        key = getattr(strategy, "weighted_by_key", None)
        if isinstance(key, str):
            return key
        strategy = getattr(strategy, "strategy", None)
    return "num-examples"
