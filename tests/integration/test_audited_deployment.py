"""The recorder and the audit in an app of somebody's own, with a real SuperLink and SuperNodes."""

import time
from pathlib import Path

import pytest

from fl_sim.deployment.control import SuperLinkControl
from fl_sim.deployment.local_processes import local_federation
from fl_sim.run_store import RunState, list_runs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deployment")]

PYPROJECT = """
[project]
name = "somebodys-app"
version = "1.0.0"
description = "An app of somebody's own"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "somebody.server_app:app"
clientapp = "somebody.client_app:app"

[tool.flwr.app.config]
runs = "{runs}"
"""

TASK = """
import torch
from torch import nn

DATA = {"image_shape": (1, 4, 4), "num_classes": 4}


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def image_of(number):
    return torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(number))
"""

SERVER = """
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_sim.recorder import record
from somebody.task import DATA, Net

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = record(
        FedAvg(fraction_evaluate=0.0, min_available_nodes=2),
        model=Net,
        data=DATA,
        training={"learning_rate": 0.1},
        folder=context.run_config["runs"],
    )
    torch.manual_seed(1)
    strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=1)
"""

CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional

from audit import Audit, PrivateBatch
from somebody.task import DATA, Net, image_of

app = ClientApp()


def private(message, context):
    number = int(context.node_config["partition-id"])
    return PrivateBatch(images=image_of(number), labels=torch.tensor([number]))


def audited(message, context, call_next):
    policy = ("report", "withhold")[int(context.node_config["partition-id"])]
    mod = Audit(
        private=private,
        model="somebody.task:Net",
        data=DATA,
        training={"learning_rate": 0.1},
        attack="analytic",
        policy=policy,
    )
    return mod(message, context, call_next)


@app.train(mods=[audited])
def train(message, context):
    number = int(context.node_config["partition-id"])
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    functional.cross_entropy(net(image_of(number)), torch.tensor([number])).backward()
    optimizer.step()
    content = RecordDict(
        {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)
"""


def test_one_client_reports_and_one_withholds_over_real_supernodes(tmp_path):
    app = tmp_path / "app"
    (app / "somebody").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT.replace("{runs}", str(tmp_path / "runs")))
    for name, text in {"__init__": "", "task": TASK, "server_app": SERVER, "client_app": CLIENT}.items():
        (app / "somebody" / f"{name}.py").write_text(text)
    with local_federation(2, home=tmp_path / "home", logs=tmp_path / "logs") as local:
        deadline = time.monotonic() + 300
        with SuperLinkControl(local.address) as control:
            _await(lambda: _is_online(control), local, tmp_path, deadline)
            run_id = control.start_run(app)
            _await(lambda: control.run_state(run_id).is_finished, local, tmp_path, deadline)
            state = control.run_state(run_id)
        assert state.is_completed, _logs(tmp_path)
    (run,) = list_runs(tmp_path / "runs")
    assert run.status().state is RunState.FINISHED
    found = run.recording.read_round(1)
    assert len(found.updates) == 1, _logs(tmp_path)
    metrics = found.updates[0].metrics
    assert metrics["audit.psnr_db_max"] > 40
    assert metrics["audit.failed"] == metrics["audit.acted"] == 0
    assert len(found.failures) == 1
    assert "withheld by the client's own audit: an image came out at" in found.failures[0].reason
    assert (run.recording.read_final()[0]["1.weight"] == found.updates[0].tensors["1.weight"]).all()


def _is_online(control: SuperLinkControl) -> bool:
    try:
        return control.num_online() == 2
    except Exception:  # noqa: BLE001 - the SuperLink is still starting
        return False


def _await(is_done, local, folder: Path, deadline: float) -> None:
    while not is_done():
        local.raise_if_ended(supernodes=True)
        assert time.monotonic() < deadline, _logs(folder)
        time.sleep(0.5)


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("logs/*.log")))
