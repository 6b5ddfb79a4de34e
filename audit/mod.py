"""The client-side audit as a Flower mod: it stands between a ClientApp and the network.

    received weights -> the app trains -> update -> attack within a budget -> report, noise, or nothing leaves

Only figures leave the client beside the update, never images.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from torch import nn

from attacker.observation import NotGrantedError
from attacker.placement import on_device
from audit.figures import PREFIX, Figures, unaudited
from audit.trial import PrivateBatch, Trial, audit_update, observe_own
from audit.within_time import make_attack
from fl_sim.errors import ConfigError, FlSimError, brief
from fl_sim.foreign_messages import ForeignMessages, trainable_keys
from fl_sim.foreign_run import check_spec, foreign_model
from fl_sim.import_plan import KnownData, KnownTraining, settle_data, settle_training
from fl_sim.messages import BadReplyError, ModelLayout
from fl_sim.options import parse_dataclass
from fl_sim.parameter_files import Fitted
from fl_sim.records import Algorithm, RoundRecord

_MOD_FAILED_PRECONDITION = 6  # Flower's code for a mod that lets nothing through
_log = logging.getLogger("flwr.audit")
_BEST_OPTIONS: Mapping[str, Mapping[str, Any]] = {"fedavg_leakage": {"loss": "cosine", "steps": 250}}
NOISED_PREFIX = f"{PREFIX}noised."

Training = Mapping[str, Any] | Callable[[Message, Context], Mapping[str, Any]]


class Policy(StrEnum):
    """What follows where the audit finds an image, or could not be made."""

    REPORT = "report"
    """The update leaves as it is; the figures travel with it."""
    NOISE = "noise"
    """Gaussian noise is added to the trainable tensors; the noised update is audited again, and leaves."""
    WITHHOLD = "withhold"
    """An error reply takes the update's place; Flower's strategies go on without this client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A mod for the ``train`` function of a ClientApp: ``@app.train(mods=[Audit(...)])``.

    Attributes:
        private: Returns what this client trained on; called after training.
        model: ``"package.module:Net"``, or a name of MODELS.
        data: Public facts, as for `fl_sim.recorder.record`.
        training: What the server knows of local training, likewise; a function where the message says it.
        seconds: Budget of an audit, wall time; a round takes so much longer.
        policy: What follows.
        threshold_db: An image found above this PSNR is a leak.
        noise_std: Standard deviation of the noise, in units of the weights; needed by the policy ``noise``.
        arguments: Of the model.
        attack: A name of ATTACKS; the default found most in short budgets (docs/audit.md).
        options: Its hyper-parameters; ``None`` takes those of the default, or an attack's own.
        algorithm: ``"fedavg"`` where the app sends weights, ``"fedsgd"`` where it sends gradients.
        num_examples_key: The metric of the reply that holds N_c.
        arrays_key: The ArrayRecord with the model, where messages have several.
        seed: Of the attack. The noise is never seeded by it, but by the machine.
    """

    private: Callable[[Message, Context], PrivateBatch]
    model: str
    data: Mapping[str, Any]
    training: Training
    seconds: float = 10.0
    policy: Policy | str = Policy.REPORT
    threshold_db: float = 20.0
    noise_std: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    attack: str = "fedavg_leakage"
    options: Mapping[str, Any] | None = None
    algorithm: str = "fedavg"
    num_examples_key: str = "num-examples"
    arrays_key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be, when the app is loaded and not in a round.

        Raises:
            ConfigError: Naming the setting, what was expected and what was got.
        """
        if self.policy not in tuple(Policy):
            raise ConfigError(f"policy: expected one of {', '.join(Policy)}, got {self.policy!r}")
        if not self.seconds > 0:
            raise ConfigError(f"seconds must be > 0, got {self.seconds}")
        if self.policy == Policy.NOISE and (self.noise_std is None or not self.noise_std > 0):
            raise ConfigError(f"policy 'noise' needs noise_std > 0, got {self.noise_std}")
        if self.policy != Policy.NOISE and self.noise_std is not None:
            raise ConfigError(f"noise_std belongs to policy 'noise', got policy {str(self.policy)!r}")
        if self.algorithm not in tuple(Algorithm):
            raise ConfigError(f"algorithm: expected 'fedavg' or 'fedsgd', got {self.algorithm!r}")
        make_attack(self.attack, self._options())

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Let the app answer, and audit the answer if it is an update."""
        if message.metadata.message_type.split(".")[0] != "train":
            return call_next(message, context)
        received = _Received.of(self, message)  # before the app, which may train in place
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        figures = self._figures(message, context, received, reply)
        is_leak = bool(figures.failed) or figures.psnr_db_max > self.threshold_db
        if self.policy == Policy.WITHHOLD and is_leak:
            return Message(Error(code=_MOD_FAILED_PRECONDITION, reason=_why(figures, self)), reply_to=message)
        metrics = {**figures.as_metrics(), f"{PREFIX}acted": 0.0}
        if self.policy == Policy.NOISE:
            after = figures
            if is_leak:
                self._add_noise(received, reply)
                after = self._figures(message, context, received, reply)
                metrics[f"{PREFIX}acted"] = 1.0
            metrics |= after.as_metrics(NOISED_PREFIX)
        _add_metrics(reply, metrics)
        return reply

    def _options(self) -> dict[str, Any]:
        return dict(_BEST_OPTIONS.get(self.attack, {}) if self.options is None else self.options)

    def _figures(self, message: Message, context: Context, received: "_Received", reply: Message) -> Figures:
        started = time.monotonic()
        try:
            return self._audit(message, context, received, reply)
        except (FlSimError, BadReplyError, NotGrantedError, ValueError, RuntimeError) as error:
            # Torch raises RuntimeError where memory runs out, too.
            _log.warning("no audit: %s: %s", type(error).__name__, brief(error))
            return unaudited(time.monotonic() - started)

    def _audit(self, message: Message, context: Context, received: "_Received", reply: Message) -> Figures:
        sent, messages, network = received.require()
        training = self.training(message, context) if callable(self.training) else self.training
        recipe, _ = settle_training(parse_dataclass(KnownTraining, training), messages.algorithm)
        spec, _ = settle_data(parse_dataclass(KnownData, self.data))
        update = messages.read_reply(reply, server_round=1, client_id=0, sent=sent)
        record = RoundRecord(
            server_round=1,
            global_parameters=sent.parameters,
            global_buffers=sent.buffers,
            updates=(update,),
            failures=(),
        )
        observation = observe_own(network, spec, record, update, recipe)
        if torch.cuda.is_available():
            observation = on_device(observation, "cuda")
        trial = Trial(
            seconds=self.seconds,
            attack=self.attack,
            options=self._options(),
            threshold_db=self.threshold_db,
            seed=self.seed,
        )
        return audit_update(trial, observation, self.private(message, context))

    def _add_noise(self, received: "_Received", reply: Message) -> None:
        """Replace the reply's arrays by noised ones, under the same names and in the same types."""
        assert self.noise_std is not None  # checked when the mod was made
        _, messages, _ = received.require()
        key, arrays = messages.arrays_item(reply)
        randomness = torch.Generator()
        randomness.seed()  # the machine's own randomness: nobody else must be able to take the noise off again
        noised = trainable_keys(arrays, messages.layout)
        found: dict[str, Array] = {}
        for name, array in arrays.items():
            values = torch.from_numpy(array.numpy().copy())
            if name in noised:
                draw = torch.randn(values.shape, generator=randomness, dtype=torch.float64)
                values = values + (self.noise_std * draw).to(values.dtype)
            found[name] = Array(values.numpy())
        reply.content[key] = ArrayRecord(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Received:
    """What the client was sent, or why it cannot be read; said when it is needed, so that training is not held up."""

    sent: Fitted | None = None
    messages: ForeignMessages | None = None
    network: nn.Module | None = None
    problem: str = ""

    @classmethod
    def of(cls, audit: Audit, message: Message) -> "_Received":
        try:
            spec, _ = settle_data(parse_dataclass(KnownData, audit.data))
            check_spec(spec)
            _, network = foreign_model(audit.model, audit.arguments, spec)
            messages = ForeignMessages(
                layout=ModelLayout.of(network),
                algorithm=Algorithm(audit.algorithm),
                num_examples_key=audit.num_examples_key,
                arrays_key=audit.arrays_key,
            )
            sent = messages.read_sent(messages.arrays(message))
        except (FlSimError, BadReplyError) as error:
            return cls(problem=str(error))
        state = network.state_dict()
        sent = sent.or_with_buffers({name: state[name].clone() for name in messages.layout.buffers})
        return cls(sent=sent, messages=messages, network=network)

    def require(self) -> tuple[Fitted, ForeignMessages, nn.Module]:
        """Return weights, their wording, and the network.

        Raises:
            ConfigError: If they could not be read.
        """
        if self.sent is None or self.messages is None or self.network is None:
            raise ConfigError(self.problem)
        return self.sent, self.messages, self.network


def _why(figures: Figures, audit: Audit) -> str:
    if figures.failed:
        return "withheld by the client's own audit: no attack could be tried, so nothing is known to be safe"
    return (
        f"withheld by the client's own audit: an image came out at {figures.psnr_db_max:.1f} dB, "
        f"above {audit.threshold_db:g} dB, within {figures.seconds:.0f} s"
    )


def _add_metrics(reply: Message, metrics: Mapping[str, float]) -> None:
    records = list(reply.content.metric_records.values())
    if not records:
        reply.content["metrics"] = MetricRecord(dict(metrics))
        return
    for name, value in metrics.items():
        records[0][name] = value
