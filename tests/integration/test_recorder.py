"""The recorder in two Flower apps that know nothing of it: no change to training, a recording like any other."""

import importlib
import io
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedMedian
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from attacker.attack_store import AttackSetting, ResultKey
from attacker.attack_worker import attack_observation, observe_update
from fl_sim.cli import app as cli
from fl_sim.engines.in_process import InProcessGrid, run_in_process, task_identity
from fl_sim.errors import ConfigError, StorageError
from fl_sim.foreign_run import add_truth
from fl_sim.parameters import l2_norm, subtract
from fl_sim.recorder import RecordedStrategy, record
from fl_sim.recording_store import RecordingStore
from fl_sim.run_store import RunState, RunStore, list_runs

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = {"image_shape": (1, 2, 2), "num_classes": 3}
TRAINING = {"learning_rate": 0.5}


def small_net() -> nn.Sequential:
    """With buffers between trainable tensors, one of them an integer, which averages turn into a float."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))


def other_net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


# A client whose weights depend on the very bits that it was sent, and on who it is.
client_app = ClientApp()


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    if number in context.run_config.get("failing", []):
        raise ValueError("no such luck")
    net = small_net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(number)
    functional.cross_entropy(net(torch.rand(4, 1, 2, 2, generator=generator)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    metrics = MetricRecord({"num-examples": 4, "me": 2 - number})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


class OwnStart(FedAvg):
    """A strategy with a loop of its own that keeps a state, as users write them."""

    best = 0

    def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, **others):
        self.best = num_rounds
        result = super().start(grid, initial_arrays, num_rounds, timeout, **others)
        assert self.improve() == num_rounds + 1
        return result

    def improve(self):
        self.best += 1
        return self.best


STRATEGIES = {
    "fedavg": lambda: FedAvg(fraction_evaluate=0.0),
    "fedmedian": lambda: FedMedian(fraction_evaluate=0.0),
    "fedadam": lambda: FedAdam(fraction_evaluate=0.0, eta=0.01),
    "own_start": lambda: OwnStart(fraction_evaluate=0.0),
    "central_dp": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0, fraction_train=1.0),
        noise_multiplier=0.0,
        clipping_norm=0.01,
        num_sampled_clients=3,
    ),
}


def federate(strategy, *, num_rounds=2, client=client_app, run_config=None, arrays=None):
    random.seed(3)  # Flower draws nodes from the global state
    torch.manual_seed(3)
    with task_identity():
        grid = InProcessGrid(client, 3, run_config=run_config)
        start = arrays or ArrayRecord(small_net().state_dict())
        result = strategy.start(grid, start, num_rounds=num_rounds)
    return {name: result.arrays[name].numpy() for name in result.arrays}, random.random(), torch.rand(1).item()


def recorded(strategy, folder, **changes) -> RecordedStrategy:
    return record(strategy, **{"model": small_net, "data": DATA, "training": TRAINING, "folder": folder, **changes})


@pytest.mark.parametrize("name", STRATEGIES)
def test_with_and_without_it_training_is_bit_identical(name, tmp_path):
    without, *draws_without = federate(STRATEGIES[name]())
    strategy = recorded(STRATEGIES[name](), tmp_path)
    with_it, *draws_with = federate(strategy)
    assert draws_with == draws_without  # and nothing was drawn from anybody's stream
    assert without.keys() == with_it.keys()
    for tensor, values in without.items():
        assert values.dtype == with_it[tensor].dtype
        assert values.tobytes() == with_it[tensor].tobytes()
    assert strategy.faults == ()
    run = strategy.run
    assert run.status().state is RunState.FINISHED
    assert run.recording.rounds() == (1, 2)
    for server_round in (1, 2):
        found = run.recording.read_round(server_round)
        assert [update.client_id for update in found.updates] == [0, 1, 2]
        assert not found.failures
    first = run.recording.read_round(1)
    if name == "central_dp":  # which clips replies in place, before its inner strategy sees them
        norms = [l2_norm(subtract(update.tensors, first.global_parameters)) for update in first.updates]
        assert min(norms) > 0.05
    if name == "fedavg":
        mean = sum(update.tensors["1.weight"] for update in first.updates) / 3
        torch.testing.assert_close(run.recording.read_round(2).global_parameters["1.weight"], mean)
        assert torch.equal(run.recording.read_final()[0]["1.weight"], torch.from_numpy(with_it["1.weight"].copy()))
        assert first.updates[0].buffers["2.num_batches_tracked"].item() == 1


def test_what_clients_say_of_themselves_decides_their_number_only_where_asked(tmp_path):
    by_appearance = recorded(FedAvg(fraction_evaluate=0.0), tmp_path / "a")
    federate(by_appearance)
    by_word = recorded(FedAvg(fraction_evaluate=0.0), tmp_path / "b", client_key="me")
    federate(by_word)
    theirs = by_word.run.recording.read_round(1).updates
    for update, same in zip(by_appearance.run.recording.read_round(1).updates, reversed(theirs), strict=True):
        assert torch.equal(update.tensors["1.weight"], same.tensors["1.weight"])
    assert any("numbered as they appeared" in sentence for sentence in by_appearance.run.assumed())
    assert not any("numbered as they appeared" in sentence for sentence in by_word.run.assumed())


def test_a_client_that_fails_is_a_failure_and_the_others_are_recorded(tmp_path):
    strategy = recorded(FedAvg(fraction_evaluate=0.0), tmp_path)
    federate(strategy, run_config={"failing": [1]})
    found = strategy.run.recording.read_round(1)
    assert [update.client_id for update in found.updates] == [0, 2]
    assert [failure.client_id for failure in found.failures] == [1]
    assert "no such luck" in found.failures[0].reason
    assert strategy.faults == ()


@pytest.mark.parametrize("fault", ["disk", "model", "metric"])
def test_a_fault_of_the_recorder_is_reported_and_stops_nothing(fault, tmp_path, monkeypatch):
    expected, *_ = federate(FedAvg(fraction_evaluate=0.0))
    changes = {"model": other_net} if fault == "model" else {"num_examples_key": "none"} if fault == "metric" else {}
    strategy = recorded(FedAvg(fraction_evaluate=0.0), tmp_path, **changes)
    if fault == "disk":
        full = StorageError("the disk is full")
        write = RecordingStore.write_round

        def write_round(self, found, **kept):
            if found.server_round == 1:
                raise full
            write(self, found, **kept)

        monkeypatch.setattr(RecordingStore, "write_round", write_round)
    found, *_ = federate(strategy)
    assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    if fault == "metric":
        reasons = [failure.reason for failure in strategy.run.recording.read_round(1).failures]
        assert len(reasons) == 3
        assert "none must be a whole number" in reasons[0]
        return
    message = {"disk": "round 1 was not recorded: StorageError: the disk is full", "model": "the names differ"}[fault]
    assert any(message in reported for reported in strategy.faults)
    if fault == "model":
        assert strategy.run is None
        assert not list_runs(tmp_path)
    else:
        assert strategy.run.status().state is RunState.FAILED
        assert "the disk is full" in strategy.run.status().message
        assert strategy.run.recording.rounds() == (2,)


def test_a_server_that_fails_says_so_in_its_run(tmp_path):
    class Breaks(FedAvg):
        def aggregate_train(self, server_round, replies):
            if server_round == 2:
                raise RuntimeError("out of magic")
            return super().aggregate_train(server_round, replies)

    strategy = recorded(Breaks(fraction_evaluate=0.0), tmp_path)
    with pytest.raises(RuntimeError, match="out of magic"):
        federate(strategy)
    assert strategy.run.status().message == "RuntimeError: out of magic"
    assert strategy.run.recording.rounds() == (1, 2)  # what was seen before that is whole


def test_inside_another_wrapper_it_says_that_it_hears_nothing(tmp_path):
    inner = recorded(FedAvg(fraction_evaluate=0.0), tmp_path)
    outer = DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=1.0, num_sampled_clients=3
    )
    federate(outer)
    assert inner.run is None
    assert inner.faults == ("record(…) must be the outermost strategy, and started: nothing is recorded",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no.such:thing"}, "cannot import"),
        ({"model": lambda: None}, "expected a class or a function at the top of a module"),
        ({"data": {"image_shape": (1, 2, 2)}}, "num_classes"),
        ({"training": {}}, "training.learning_rate is required"),
        ({"training": {"learning_rate": 0.1, "optimiser": "sgd"}}, "optimiser"),
        ({"algorithm": "scaffold"}, "expected 'fedavg' or 'fedsgd'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_trains(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        recorded(FedAvg(fraction_evaluate=0.0), tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folder", "package"), [("quickstart_pytorch", "quickstart"), ("fedadam_numpy", "second_app")])
def test_the_examples_are_flower_apps_and_bundle_nothing_of_ours(folder, package):
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(EXAMPLES / folder))).namelist()
    assert {f"{package}/server_app.py", f"{package}/client_app.py"} <= set(names)
    assert {name.split("/")[0] for name in names if "/" in name} == {package, ".info"}


def run_example(monkeypatch, folder, package, *, num_clients=3, **run_config) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / folder))
    apps = [importlib.import_module(f"{package}.{side}_app").app for side in ("server", "client")]
    assert isinstance(apps[0], ServerApp)
    random.seed(0)
    run_in_process(*apps, num_clients, run_config=run_config)


def attack(run: RunStore, name: str, key: ResultKey, **options):
    setting = AttackSetting(name=name, options=options, threat_model="honest_but_curious")
    observation = observe_update(run.recording.folder, key.server_round, key.clients, setting.threat_model)
    return attack_observation(setting, key, observation, lambda progress: None)


def test_the_quickstart_app_leaks_to_a_short_attack(tmp_path, monkeypatch):
    config = {"learning-rate": 0.1, "local-epochs": 1, "batch-size": 4, "images-per-client": 4, "num-server-rounds": 1}
    config |= {"audit-seconds": 0.5, "audit-policy": "report"}
    run_example(monkeypatch, "quickstart_pytorch", "quickstart", **config, **{"record-to": str(tmp_path)})
    (run,) = list_runs(tmp_path)
    load_images = sys.modules["quickstart.task"].load_images
    private = [load_images(client_id, 4) for client_id in range(3)]
    images, labels = (np.concatenate([part[index].numpy() for part in private]) for index in (0, 1))
    np.savez(tmp_path / "private.npz", images=images, labels=labels, clients=np.repeat([0, 1, 2], 4))
    add_truth(run, tmp_path / "private.npz")
    listed = CliRunner().invoke(cli, ["labels", str(run.folder), "--methods", "automatic"], env={"COLUMNS": "120"})
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.count("0/4") == 3  # all labels of all three clients, by the app's own partition ids
    for update in run.recording.read_round(1).updates:
        assert update.metrics["audit.failed"] == 0
        assert update.metrics["audit.wrong_labels"] == 0
    found = attack(run, "inverting_gradients", ResultKey(server_round=1, client_id=1, seed=0), steps=150)
    distances = torch.cdist(found.images.flatten(1), private[1][0].flatten(1)).min(dim=0).values ** 2 / 64
    others = torch.cdist(private[0][0].flatten(1), private[1][0].flatten(1)).min(dim=0).values ** 2 / 64
    assert distances.mean() < 0.3 * others.mean()  # nearer to the client's images than another client's are


def test_the_second_app_with_its_own_names_and_numbered_arrays(tmp_path, monkeypatch):
    run_example(
        *(monkeypatch, "fedadam_numpy", "second_app"),
        **{"rounds": 2, "images-per-client": 6, "record-to": str(tmp_path)},
    )
    (run,) = list_runs(tmp_path)
    manifest = run.recording.read_manifest()
    assert manifest.parameters[0] == "1.weight"
    assert manifest.num_clients == 3
    assert run.status().state is RunState.FINISHED
    for sentence in ("arrays are numbered", "the app sends no buffers", "no momentum", "pixels in [0, 1] as they are"):
        assert any(sentence in assumed for assumed in run.assumed())
    update = run.recording.read_round(2).updates[2]
    assert update.num_examples == 6
    listed = CliRunner().invoke(cli, ["labels", str(run.folder), "--methods", "automatic", "--round", "2"])
    assert listed.exit_code == 0, listed.output
    found = attack(run, "inverting_gradients", ResultKey(server_round=1, client_id=0, seed=0), steps=5)
    assert found.images.shape == (6, 1, 8, 8)
    assert found.matching_loss < found.losses[0]


def test_weights_of_a_clients_own_are_not_taken_for_the_global_ones(tmp_path):
    class Personal(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            own = {name: tensor + 1 for name, tensor in arrays.to_torch_state_dict().items()}
            content = RecordDict({"arrays": ArrayRecord(own), "config": ConfigRecord({"server-round": server_round})})
            messages[-1] = Message(content, messages[-1].metadata.dst_node_id, "train")
            return messages

    strategy = recorded(Personal(fraction_evaluate=0.0), tmp_path)
    federate(strategy, num_rounds=1)
    found = strategy.run.recording.read_round(1)
    assert len(found.updates) == 2
    assert "was sent other weights" in found.failures[0].reason
