"""The audit as a mod of a Flower app, in the simulation: what leaves a client under each policy, and what never."""

import math
import random

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from torch import nn
from torch.nn import functional

from audit import Audit, Policy, PrivateBatch
from audit.figures import Figures
from audit.mod import NOISED_PREFIX
from fl_sim.engines.in_process import InProcessGrid, task_identity
from fl_sim.errors import ConfigError

SIZE = (1, 4, 4)
DATA = {"image_shape": SIZE, "num_classes": 4}
SECONDS = 1.5


def leaky() -> nn.Sequential:
    """One image goes through a wide fully connected layer: the analytic attack reads it off at once."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def broken() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def images_of(number: int) -> torch.Tensor:
    return torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(number))


def private(message: Message, context: Context) -> PrivateBatch:
    number = int(context.node_config["partition-id"])
    return PrivateBatch(images=images_of(number), labels=torch.tensor([number]))


def make_app(audit=None, *, numbered=False) -> ClientApp:
    app = ClientApp()

    @app.train(mods=[] if audit is None else [audit])
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        net = leaky()
        received = message.content["arrays"]
        names = list(net.state_dict())
        state = received.to_torch_state_dict()
        net.load_state_dict(dict(zip(names, state.values(), strict=True)) if numbered else state)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        functional.cross_entropy(net(images_of(number)), torch.tensor([number])).backward()
        optimizer.step()
        arrays = [t.numpy() for t in net.state_dict().values()] if numbered else net.state_dict()
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    return app


def audit(**changes) -> Audit:
    settings = {
        "private": private,
        "model": f"{__name__}:leaky",
        "data": DATA,
        "training": {"learning_rate": 0.1},
        "attack": "analytic",
        "seconds": SECONDS,
    }
    return Audit(**{**settings, **changes})


def federate(app, *, strategy=None, numbered=False, num_clients=3):
    """Run one round and return the raw replies by client, and the result."""
    torch.manual_seed(1)
    random.seed(1)
    state = leaky().state_dict()
    arrays = ArrayRecord([tensor.numpy() for tensor in state.values()] if numbered else state)
    replies = {}

    class Tapped(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            found = list(super().send_and_receive(messages, timeout=timeout))
            replies.update({reply.metadata.src_node_id - 1000: reply for reply in found})
            return found

    with task_identity():
        strategy = strategy or FedAvg(fraction_evaluate=0.0)
        result = strategy.start(Tapped(app, num_clients), arrays, num_rounds=1)
    return replies, result


def tensors(reply):
    return {name: array.numpy() for name, array in reply.content["arrays"].items()}


@pytest.fixture(scope="module")
def plain():
    return federate(make_app())[0]


def test_a_report_changes_no_bit_of_the_update_and_tells_the_truth(plain):
    replies, result = federate(make_app(audit()))
    for number, reply in replies.items():
        for name, values in tensors(reply).items():
            assert values.tobytes() == tensors(plain[number])[name].tobytes()
        metrics = dict(reply.content["metrics"])
        assert metrics["num-examples"] == 1
        assert metrics["audit.psnr_db_max"] > 40  # one image through a fully connected layer is read off exactly
        assert metrics["audit.recovered_share"] == 1
        assert metrics["audit.wrong_labels"] == 0
        # The guess is the public mean of each channel, 0 here: the PSNR of a black picture.
        black = -10 * math.log10(images_of(number).square().mean().item())
        assert metrics["audit.baseline_psnr_db"] == pytest.approx(black, abs=1e-4)
        assert metrics["audit.acted"] == metrics["audit.failed"] == 0
        # Nothing but numbers has joined the reply.
        assert list(reply.content) == ["arrays", "metrics"]
        assert all(isinstance(value, int | float) for value in metrics.values())
    assert result.train_metrics_clientapp[1]["audit.psnr_db_max"] > 40  # Flower averages the figures


@pytest.mark.parametrize("numbered", [False, True], ids=["named", "numbered"])
def test_noise_has_its_standard_deviation_is_drawn_anew_and_the_noised_update_is_audited(plain, numbered):
    std = 0.05
    # A seed that somebody else sets must not decide the noise.
    one, two = (
        federate(make_app(audit(policy="noise", noise_std=std), numbered=numbered), numbered=numbered)[0] for _ in "ab"
    )
    values = []
    for number in plain:
        clean = list(tensors(plain[number]).values())
        first, second = (list(tensors(replies[number]).values()) for replies in (one, two))
        for before, after, again in zip(clean, first, second, strict=True):
            assert after.dtype == before.dtype
            assert (after != again).mean() > 0.99
            values.append(torch.from_numpy(after - before).flatten())
        metrics = dict(one[number].content["metrics"])
        assert metrics["audit.acted"] == 1
        assert metrics["audit.psnr_db_max"] > 40 > metrics[f"{NOISED_PREFIX}psnr_db_max"]
    noise = torch.cat(values)
    assert float(noise.std()) == pytest.approx(std, rel=0.05)
    assert abs(float(noise.mean())) < 4 * std / len(noise) ** 0.5


def test_noise_is_for_leaks_only(plain):
    replies, _ = federate(make_app(audit(policy="noise", noise_std=1.0, threshold_db=1000.0)))
    for number, reply in replies.items():
        assert all(v.tobytes() == tensors(plain[number])[n].tobytes() for n, v in tensors(reply).items())
        metrics = dict(reply.content["metrics"])
        assert metrics["audit.acted"] == 0
        assert metrics[f"{NOISED_PREFIX}psnr_db_max"] == metrics["audit.psnr_db_max"]


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
def test_what_is_withheld_is_no_weight_at_all_and_strategies_go_on(strategy, plain):
    class Partly(Audit):
        """Only client 1 leaks: the others are blind to what they could find."""

        def __call__(self, message, context, call_next):
            if int(context.node_config["partition-id"]) != 1:
                return call_next(message, context)
            return super().__call__(message, context, call_next)

    settings = audit(policy=Policy.WITHHOLD)
    partly = Partly(**{name: getattr(settings, name) for name in settings.__dataclass_fields__})
    replies, result = federate(make_app(partly), strategy=strategy(fraction_evaluate=0.0))
    assert replies[1].has_error()
    assert not replies[1].has_content()
    assert "an image came out at" in replies[1].error.reason
    mean = (tensors(plain[0])["1.weight"] + tensors(plain[2])["1.weight"]) / 2
    torch.testing.assert_close(torch.from_numpy(result.arrays["1.weight"].numpy()), torch.from_numpy(mean))


def test_where_all_withhold_the_global_model_stays(plain):
    replies, result = federate(make_app(audit(policy="withhold")))
    assert all(reply.has_error() for reply in replies.values())
    assert len(result.arrays) == 0  # Flower's word for a model that never changed


@pytest.mark.parametrize(
    "changes",
    [
        {"model": f"{__name__}:broken"},
        {"num_examples_key": "none"},
        {"training": lambda message, context: {"optimizer": "adam"}},
        {"private": lambda message, context: PrivateBatch(images=torch.rand(1, 1, 9, 9), labels=torch.tensor([0]))},
    ],
    ids=["model", "metric", "training", "images"],
)
def test_an_audit_that_cannot_be_made_lets_nothing_pass_that_should_be_safe(changes, plain):
    reported, _ = federate(make_app(audit(**changes)))
    metrics = dict(reported[0].content["metrics"])
    assert metrics["audit.failed"] == 1
    assert math.isnan(metrics["audit.psnr_db_max"])
    assert set(metrics) == {"num-examples", "audit.acted", *Figures.__dataclass_fields__} - set(
        Figures.__dataclass_fields__
    ) | {f"audit.{name}" for name in Figures.__dataclass_fields__}
    assert tensors(reported[0])["1.weight"].tobytes() == tensors(plain[0])["1.weight"].tobytes()
    withheld, _ = federate(make_app(audit(policy="withhold", **changes)))
    assert all("nothing is known to be safe" in reply.error.reason for reply in withheld.values())


def test_an_app_that_fails_is_not_audited_and_other_messages_pass():
    app = ClientApp()
    called = []

    def never(message, context):
        called.append(message)
        return PrivateBatch(images=torch.rand(1, *SIZE), labels=torch.tensor([0]))

    @app.train(mods=[audit(private=never)])
    def train(message: Message, context: Context) -> Message:
        raise ValueError("no such luck")

    @app.evaluate(mods=[audit(private=never)])
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    replies, _ = federate(app, strategy=FedAvg())
    assert not called
    assert all(not reply.has_error() for reply in replies.values())  # those of the evaluation, which came last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "hope"}, "policy: expected one of report, noise, withhold, got 'hope'"),
        ({"policy": "noise"}, "policy 'noise' needs noise_std > 0, got None"),
        ({"noise_std": 0.1}, "noise_std belongs to policy 'noise'"),
        ({"seconds": 0}, "seconds must be > 0, got 0"),
        ({"attack": "magic"}, "unknown attack 'magic'"),
        ({"algorithm": "scaffold"}, "expected 'fedavg' or 'fedsgd'"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_app_is_loaded(changes, message):
    with pytest.raises(ConfigError, match=message):
        audit(**changes)
