"""The server of the federation: honest in what it aggregates, curious in what it keeps.

    experiment -> model -> RecordingStrategy(FedAvg or FedSGD, perhaps CentrallyPrivate) -> rounds
                        -> SecAgg+ between the same strategy and a SecureAggregationRecorder -> rounds

`build_server_app` serves the simulation engines; the module's ``app`` is what ``flwr run .`` loads.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn

from fl_sim.app_config import experiment_of, runs_dir_of
from fl_sim.central_accounting import central_guarantee
from fl_sim.checkpoint import ServerState
from fl_sim.client_registry import ClientRegistry, readmit_clients, register_clients
from fl_sim.config import Experiment, is_selected
from fl_sim.errors import FederationError, RecordingError, brief
from fl_sim.evaluation import evaluate
from fl_sim.events import Event, EventKind, OnEvent, append_event
from fl_sim.federated_data import FederatedData, load_federated_data
from fl_sim.messages import ModelLayout, pack_arrays, unpack_arrays
from fl_sim.models import MODELS, without_trained_weights
from fl_sim.options import build
from fl_sim.recording import OnRound, RecordingStrategy
from fl_sim.recording_store import Manifest, NamedPart
from fl_sim.records import Algorithm, ReplyFailure, RoundRecord
from fl_sim.run_lock import locked
from fl_sim.run_store import RoundEvaluation, RunState, RunStatus, RunStore, create_run
from fl_sim.secure_aggregation import run_secure_rounds
from fl_sim.secure_aggregation_recorder import SecureAggregationRecorder
from fl_sim.seeds import generator
from fl_sim.strategies import (
    CentrallyPrivate,
    LaterRounds,
    ReproducibleFedAvg,
    ReproducibleFedSGD,
    check_private_model,
)
from fl_sim.streaming_grid import StreamingGrid

_MOST_FAILURES_TOLD = 5


def _ignore_round(record: RoundRecord) -> None:
    """Let a round pass."""


def build_server_app(run: RunStore, *, on_round: OnRound = _ignore_round) -> ServerApp:
    """Return a ServerApp that runs the experiment of a run folder and records into it.

    Args:
        run: A run made by `create_run`.
        on_round: Called with each recorded round, while training goes on.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, run, on_round=on_round)

    return server_app


app = ServerApp()


@app.main()
def _flower_main(grid: Grid, context: Context) -> None:
    """Entry of ``flwr run .``: make a run folder, then serve."""
    run = create_run(experiment_of(context), runs_dir_of(context))
    with locked(run.folder):
        serve(grid, run)


def serve(grid: Grid, run: RunStore, *, on_round: OnRound = _ignore_round) -> None:
    """Run the federation of a run folder to its end, from its checkpoint where there is one.

    The status of the run is the truth about it: ``finished``, or ``failed`` with the reason.
    """
    started = time.monotonic()
    try:
        _serve(grid, run, on_round)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        run.write_status(RunStatus(state=RunState.FAILED, message=message, seconds=time.monotonic() - started))
        raise
    run.write_status(RunStatus(state=RunState.FINISHED, seconds=time.monotonic() - started))
    run.checkpoint.remove()


def _serve(grid: Grid, run: RunStore, on_round: OnRound) -> None:
    torch.set_num_threads(1)  # a fixed number: sums must not depend on the machine's load
    experiment = run.experiment()
    data = load_federated_data(experiment.data, experiment.seed)
    model = _build_model(experiment, data)
    layout = ModelLayout.of(model)
    check_server_privacy(experiment, model)
    notebook = _Notebook(run, experiment, on_round)
    state, arrays = _begin_or_go_on(run, _manifest(experiment, data, layout), model, layout, notebook)
    federation = experiment.federation
    registry = register_clients(grid, experiment.data.num_clients, timeout=federation.reply_timeout)
    notebook.tell(
        Event(kind=EventKind.FEDERATION_STARTED, server_round=state.server_round, total=federation.num_rounds)
    )

    def readmit() -> None:
        readmit_clients(registry, grid, timeout=federation.reply_timeout, on_return=notebook.tell_return)

    strategy = _build_strategy(experiment, registry, layout, readmit)
    evaluator = _Evaluator(run, model, layout, data, notebook.tell, state.server_round)
    after_round = _AfterRound(run, layout, evaluator, notebook, state, arrays)
    train = _train_openly if federation.secure_aggregation is None else _train_securely
    train(grid, experiment, strategy, notebook, after_round)
    if not after_round.state.has_trained:
        raise FederationError(
            f"no round changed the global model: none had federation.min_replies = {federation.min_replies} usable "
            f"replies; {notebook.describe_last_failures()}"
        )
    run.recording.write_final(*unpack_arrays(after_round.arrays, layout))
    notebook.tell(Event(kind=EventKind.FEDERATION_FINISHED, server_round=federation.num_rounds))


def _begin_or_go_on(
    run: RunStore, manifest: Manifest, model: nn.Module, layout: ModelLayout, notebook: "_Notebook"
) -> tuple[ServerState, ArrayRecord]:
    """Return where a run stands and its global model; what was written beyond that goes."""
    found = run.checkpoint.read({**layout.parameters, **layout.buffers})
    state, tensors = (ServerState(), dict(model.state_dict())) if found is None else found
    arrays = pack_arrays(
        {name: tensors[name] for name in layout.parameters}, {name: tensors[name] for name in layout.buffers}
    )
    dropped = run.recording.drop_rounds_after(state.server_round)
    if found is None:
        run.recording.write_manifest(manifest)
    elif run.recording.read_manifest() != manifest:
        raise RecordingError(
            f"{run.recording.folder / 'manifest.json'}: the data, the model or a package is no longer what it was when "
            "the run began; put it back, or run the experiment anew"
        )
    if found is not None or dropped:
        message = f"goes on after round {state.server_round}"
        if dropped:
            message += f"; round {', '.join(map(str, dropped))} had not ended: dropped, and trained again"
        notebook.tell(Event(kind=EventKind.FEDERATION_RESUMED, server_round=state.server_round, message=message))
    return state, arrays


def check_server_privacy(experiment: Experiment, model: nn.Module) -> None:
    """Refuse what the server's side of privacy cannot do for a model.

    Raises:
        ConfigError: If central differential privacy would leave a part of the model without noise.
    """
    if experiment.federation.central_privacy is not None:
        check_private_model(ModelLayout.of(model))


class _Notebook:
    """Where a running federation writes down what happens: recording and events."""

    def __init__(self, run: RunStore, experiment: Experiment, on_round: OnRound) -> None:
        self.run = run
        self._experiment = experiment
        self._on_round = on_round
        self._current_round = 0
        self._last_failures: tuple[ReplyFailure, ...] = ()

    def tell(self, event: Event) -> None:
        append_event(self.run.events_path, event)

    def start_round(self, server_round: int, num_clients: int) -> None:
        self._current_round = server_round
        self.tell(Event(kind=EventKind.ROUND_STARTED, server_round=server_round, total=num_clients))

    def tell_reply(self, reply: Message) -> None:
        self.tell(Event(kind=EventKind.REPLY_RECEIVED, server_round=self._current_round))

    def tell_return(self, client_id: int) -> None:
        self.warn(self._current_round + 1, f"client {client_id} is back, as another node")

    def describe_last_failures(self) -> str:
        """Return who failed in the last round of this process, and why."""
        if not self._last_failures:
            return "no reply failed: too few clients were asked"
        told = "; ".join(_describe_failure(failure) for failure in self._last_failures[:_MOST_FAILURES_TOLD])
        left = len(self._last_failures) - _MOST_FAILURES_TOLD
        return f"round {self._current_round}: {told}" + (f"; and {left} more" if left > 0 else "")

    def warn(self, server_round: int, message: str) -> None:
        logging.getLogger(__name__).warning("round %d: %s", server_round, message)
        self.tell(Event(kind=EventKind.WARNING, server_round=server_round, message=message))

    def record_round(self, record: RoundRecord) -> None:
        kept = self._experiment.recording
        self.run.recording.write_round(
            record,
            keep_round=is_selected(kept.rounds, record.server_round),
            keep_clients={u.client_id for u in record.updates if is_selected(kept.clients, u.client_id)},
        )
        self._on_round(record)
        self._last_failures = record.failures
        for failure in record.failures[:_MOST_FAILURES_TOLD]:
            message = _describe_failure(failure)
            logging.getLogger(__name__).warning("round %d: %s", record.server_round, message)
            self.tell(Event(kind=EventKind.REPLY_FAILED, server_round=record.server_round, message=message))
        self.tell(Event(kind=EventKind.ROUND_RECORDED, server_round=record.server_round, failures=len(record.failures)))

    def record_masked_vector(self, server_round: int, client_id: int, vector: Mapping[str, Tensor]) -> None:
        kept = self._experiment.recording
        if is_selected(kept.rounds, server_round) and is_selected(kept.clients, client_id):
            self.run.recording.write_masked_vector(server_round, client_id, vector)


def _describe_failure(failure: ReplyFailure) -> str:
    """Return client and reason as one printable line; the recording has the reason in full."""
    return f"client {failure.client_id}{f' ({failure.stage})' if failure.stage else ''}: {brief(failure.reason)}"


class _AfterRound:
    """What follows each aggregation: a checkpoint, then the central test.

    Attributes:
        state: Where the federation stands.
        arrays: Its global model.
    """

    def __init__(
        self,
        run: RunStore,
        layout: ModelLayout,
        evaluator: "_Evaluator",
        notebook: _Notebook,
        state: ServerState,
        arrays: ArrayRecord,
    ) -> None:
        self.state = state
        self.arrays = arrays
        self._run = run
        self._layout = layout
        self._evaluator = evaluator
        self._notebook = notebook

    def __call__(
        self, server_round: int, arrays: ArrayRecord, *, num_releases: int = 0, explain: str | None = None
    ) -> MetricRecord | None:
        """Write down where the federation stands.

        Args:
            server_round: The round that was aggregated, or the last one before the first of this process.
            arrays: The global model.
            num_releases: Models published under central differential privacy.
            explain: What a person is told where the round left the global model as it was.
        """
        if server_round > self.state.server_round:
            is_changed = arrays is not self.arrays  # a round that fails hands back the very same record
            if not is_changed and explain is not None:
                self._notebook.warn(server_round, explain)
            self.arrays = arrays
            self.state = ServerState(
                server_round=server_round,
                has_trained=self.state.has_trained or is_changed,
                num_releases=num_releases,
            )
            parameters, buffers = unpack_arrays(arrays, self._layout)
            self._run.checkpoint.write(self.state, {**parameters, **buffers})
        return self._evaluator(server_round, arrays)


def _train_openly(
    grid: Grid,
    experiment: Experiment,
    strategy: ReproducibleFedAvg,
    notebook: _Notebook,
    after_round: _AfterRound,
) -> None:
    """Train where the server sees every update."""
    federation = experiment.federation
    privacy = federation.central_privacy
    private = None if privacy is None else CentrallyPrivate(strategy, privacy)
    num_done = after_round.state.server_round
    if private is not None:
        private.num_releases = after_round.state.num_releases
    recording_strategy = RecordingStrategy(
        private or strategy,
        registry=strategy.registry,
        layout=strategy.layout,
        algorithm=federation.algorithm,
        on_round=notebook.record_round,
        on_round_start=notebook.start_round,
    )

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return after_round(
            server_round + num_done,
            arrays,
            num_releases=0 if private is None else private.num_releases,
            explain=f"fewer usable replies than federation.min_replies = {federation.min_replies}; "
            "the global model is as it was",
        )

    LaterRounds(recording_strategy, num_done=num_done).start(
        StreamingGrid(grid, notebook.tell_reply),
        after_round.arrays,
        num_rounds=federation.num_rounds - num_done,
        timeout=federation.reply_timeout,
        evaluate_fn=evaluate_fn,
    )
    if private is not None:
        notebook.run.recording.write_guarantee(central_guarantee(private.privacy, private.num_releases))


def _train_securely(
    grid: Grid,
    experiment: Experiment,
    strategy: ReproducibleFedAvg,
    notebook: _Notebook,
    after_round: _AfterRound,
) -> None:
    """Train where the server sees masked vectors and their sum."""
    federation = experiment.federation
    options = experiment.secure_aggregation()
    assert options is not None  # or the server would train openly
    recorder = SecureAggregationRecorder(
        registry=strategy.registry,
        layout=strategy.layout,
        algorithm=federation.algorithm,
        options=options,
        on_round=notebook.record_round,
        on_masked_vector=notebook.record_masked_vector,
        on_round_start=notebook.start_round,
        on_reply=notebook.tell_reply,
        on_warning=notebook.warn,
    )
    run_secure_rounds(
        grid,
        after_round.arrays,
        strategy=strategy,
        options=options,
        recorder=recorder,
        num_done=after_round.state.server_round,
        num_rounds=federation.num_rounds,
        timeout=federation.reply_timeout,
        evaluate=after_round,
    )


def _build_model(experiment: Experiment, data: FederatedData) -> nn.Module:
    return build(
        MODELS[experiment.model.name],
        experiment.model.options,
        where="model.options",
        dataset=data.dataset.spec,
        generator=generator(experiment.seed, "model-initialisation"),
    )


def _build_strategy(
    experiment: Experiment, registry: ClientRegistry, layout: ModelLayout, before_round: Callable[[], None]
) -> ReproducibleFedAvg:
    federation = experiment.federation
    if federation.algorithm is Algorithm.FEDSGD:
        return ReproducibleFedSGD(
            registry=registry,
            layout=layout,
            seed=experiment.seed,
            learning_rate=experiment.training.learning_rate,
            clients_per_round=federation.clients_per_round,
            min_replies=federation.min_replies,
            before_round=before_round,
        )
    return ReproducibleFedAvg(
        registry=registry,
        layout=layout,
        seed=experiment.seed,
        clients_per_round=federation.clients_per_round,
        min_replies=federation.min_replies,
        before_round=before_round,
    )


def _manifest(experiment: Experiment, data: FederatedData, layout: ModelLayout) -> Manifest:
    return Manifest(
        model=NamedPart(
            name=experiment.model.name,
            # The weights of each round are recorded; a recording must be readable where the file is not.
            options=without_trained_weights(MODELS[experiment.model.name], experiment.model.options),
        ),
        dataset=data.dataset.spec,
        algorithm=experiment.federation.algorithm,
        local_training=experiment.training,
        parameters=tuple(layout.parameters),
        buffers=tuple(layout.buffers),
        num_clients=experiment.data.num_clients,
        declared_defenses=tuple(NamedPart(name=d.name, options=d.options) for d in experiment.defenses),
        central_privacy=experiment.federation.central_privacy,
        secure_aggregation=experiment.secure_aggregation(),
    )


class _Evaluator:
    """Tests the global model centrally after each round and writes the result down."""

    def __init__(
        self,
        run: RunStore,
        model: nn.Module,
        layout: ModelLayout,
        data: FederatedData,
        on_event: OnEvent,
        num_done: int,
    ) -> None:
        self._run = run
        self._model = model
        self._layout = layout
        self._data = data
        self._on_event = on_event
        self._evaluations = [entry for entry in run.evaluations() if entry.server_round <= num_done]

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if any(entry.server_round == server_round for entry in self._evaluations):
            return None  # before a killed server was resumed
        parameters, buffers = unpack_arrays(arrays, self._layout)
        dataset = self._data.dataset
        found = evaluate(self._model, parameters, buffers, dataset.test_images, dataset.test_labels)
        loss = found.loss if math.isfinite(found.loss) else None
        evaluation = RoundEvaluation(server_round=server_round, accuracy=found.accuracy, loss=loss)
        self._evaluations.append(evaluation)
        self._run.write_evaluations(self._evaluations)
        self._on_event(
            Event(
                kind=EventKind.EVALUATED,
                server_round=server_round,
                accuracy=evaluation.accuracy,
                loss=evaluation.loss,
            )
        )
        return MetricRecord({"accuracy": found.accuracy, "loss": found.loss})
