"""Faults of real processes: what a person sees, what the recording holds, and that the round goes on."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

import fl_sim.runtime
from attacker.attack import ignore_progress
from attacker.campaign import plan_campaign, run_campaign
from attacker.campaign_observer import CampaignObserver, TaskFailure
from attacker.recipes.inverting_gradients import InvertingGradients
from clients.client_app import build_client_app
from fl_sim import seeds
from fl_sim.cli.federation_progress import show_federation
from fl_sim.client_registry import readmit_clients, register_clients
from fl_sim.config import AttackConfig, Experiment
from fl_sim.deployment.local_processes import environment_of_processes, local_federation
from fl_sim.engines.in_process import InProcessGrid, task_identity
from fl_sim.errors import RecordingError
from fl_sim.events import Event, EventKind, read_events
from fl_sim.messages import pack_identity
from fl_sim.parameters import flatten
from fl_sim.process_tree import descendants, end_processes
from fl_sim.run_store import RunState, create_run
from fl_sim.runtime import run_federation
from fl_sim.streaming_grid import StreamingGrid


class FaultyClientApp(ClientApp):
    """Does to some clients in some rounds what ``faults.json`` in a folder of the test says."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        super().__init__()
        self._sound = build_client_app(experiment)
        self._folder = folder

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            server_round = message.content.config_records["config"]["server-round"]
            name = f"{server_round}-{context.node_config['partition-id']}"
            fault = json.loads((self._folder / "faults.json").read_text()).get(name)
            with (self._folder / f"asked-{name}").open("a") as stream:
                stream.write("x")
            times = len((self._folder / f"asked-{name}").read_text())
            if fault == "killed" or (fault == "killed once" and times == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hangs":
                time.sleep(10_000)
            if fault == "raises":
                raise ValueError("no [bold]data[/] today\n\x1b[31m")
        return self._sound(message, context)


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process and all that stems from it listen."""
    found: set[str] = set()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            sockets = one.net_connections(kind="inet")
            found |= {str(entry.laddr.ip) for entry in sockets if entry.status == psutil.CONN_LISTEN}
    return found


def build_faulty_client_app(experiment: Experiment) -> ClientApp:
    return FaultyClientApp(experiment, Path(os.environ["FL_SIM_TEST_FAULTS"]))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_on_ray_killed_hanging_and_raising_clients_are_failures_and_the_others_go_on(
    tiny, run_tiny, tmp_path, monkeypatch, capsys
):
    faults = {"1-0": "killed once", "2-1": "killed", "3-2": "raises", "4-3": "hangs"}
    (tmp_path / "faults.json").write_text(json.dumps(faults))
    monkeypatch.setenv("FL_SIM_TEST_FAULTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(fl_sim.runtime, "_SECONDS_TO_EXIT", 1.0)  # Flower's simulation waits for a hanging client
    changes = ["data.num_clients=4", "federation.num_rounds=4", "federation.reply_timeout=60"]
    run = create_run(tiny(*changes), tmp_path / "runs")
    events: list[Event] = []
    addresses: set[str] = set()

    def watched():
        for event in run_federation(run, engine="ray", client_app="test_faults:build_faulty_client_app"):
            events.append(event)
            if event.kind is EventKind.ROUND_RECORDED:
                addresses.update(listening(psutil.Process(json.loads((run.folder / "engine.json").read_text())["pid"])))
            yield event

    show_federation(watched(), num_rounds=4, quiet=True)
    assert run.status().state is RunState.FINISHED
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert addresses
    # A client whose process dies once is asked again, and nothing is missing.
    assert (tmp_path / "asked-1-0").read_text() == "xx"
    whole, alike = run.recording.read_round(1), run_tiny(*changes).recording.read_round(1)
    assert not whole.failures
    for mine, other in zip(whole.updates, alike.updates, strict=True):
        assert torch.equal(flatten(mine.tensors), flatten(other.tensors))
    seen = " ".join(capsys.readouterr().err.split())
    expected = {
        2: (1, r"Actor(Died|Unavailable)Error"),
        3: (2, r"no \[bold\]data\[/\] today"),
        4: (3, "no reply before the deadline"),
    }
    for server_round, (client, reason) in expected.items():
        record = run.recording.read_round(server_round)
        assert {update.client_id for update in record.updates} == {0, 1, 2, 3} - {client}
        assert [failure.client_id for failure in record.failures] == [client]
        assert re.search(reason, record.failures[0].reason)
        assert f"round {server_round}: client {client}: " in seen
    told = [event for event in events if event.kind is EventKind.REPLY_FAILED]
    assert [event.server_round for event in told] == [2, 3, 4]
    assert "\x1b[31m" not in told[1].message


@pytest.mark.slow
@pytest.mark.xdist_group("deployment")
def test_a_supernode_that_was_killed_and_comes_back_is_its_client_again(tiny, tmp_path, monkeypatch):
    # Client 0 raises in round 1; SuperNode 1 is killed after it and started again; its client dies in round 4.
    (tmp_path / "faults.json").write_text(json.dumps({"1-0": "raises", "4-1": "killed"}))
    monkeypatch.setenv("FL_SIM_TEST_FAULTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes = ["data.num_clients=2", "federation.num_rounds=4", "federation.reply_timeout=75"]
    run = create_run(tiny(*changes), tmp_path / "runs")
    events: list[Event] = []
    with local_federation(2, home=tmp_path / "home", logs=tmp_path / "logs") as local:
        federation = run_federation(
            run, engine="deployment", client_app="test_faults:build_faulty_client_app", superlink=local.address
        )
        victim, successor = local.supernodes[1].process, None
        try:
            for event in federation:
                events.append(event)
                if event.kind is EventKind.ROUND_RECORDED and event.server_round == 1:
                    addresses = listening(psutil.Process())
                    helpers = descendants(victim.pid)
                    victim.kill()
                    end_processes(helpers, seconds=0)
                    environment = environment_of_processes(tmp_path / "successor", os.environ)
                    successor = subprocess.Popen(victim.args, env=environment, stdout=subprocess.DEVNULL)
        finally:
            federation.close()
            if successor is not None:
                helpers = descendants(successor.pid)
                successor.terminate()
                successor.wait(20)
                end_processes(helpers, seconds=10)
    assert run.status().state is RunState.FINISHED
    assert addresses == {"127.0.0.1"}
    rounds = [run.recording.read_round(server_round) for server_round in (1, 2, 3, 4)]
    answered = [{update.client_id for update in record.updates} for record in rounds]
    reasons = {(failure.server_round, failure.client_id): failure.reason for r in rounds for failure in r.failures}
    # Not more: on a machine that is busy, a sound client may be late as well.
    assert "today" in reasons[1, 0]
    assert 1 not in answered[1]
    assert (2, 1) in reasons
    assert 1 in answered[2]
    # Flower notices after a minute by itself.
    assert re.search("no reply before the deadline|ClientApp stopped responding", reasons[4, 1])
    told = [(event.server_round, event.message) for event in events if event.kind is EventKind.WARNING]
    assert (3, "client 1 is back, as another node") in told


def test_the_deadline_is_kept_and_a_late_reply_is_not_taken_for_the_next_rounds():
    grid = _SlowGrid()
    streaming = StreamingGrid(grid, lambda reply: None, pull_interval=0.001)
    with task_identity():
        first = [Message(RecordDict(), node_id, MessageType.TRAIN) for node_id in (1, 2)]
        replies = list(streaming.send_and_receive(first, timeout=0.05))
        assert [reply.metadata.src_node_id for reply in replies] == [1]
        grid.wakes_up = True
        second = [Message(RecordDict(), 1, MessageType.TRAIN)]
        replies = list(streaming.send_and_receive(second, timeout=5))
    assert [reply.metadata.reply_to_message_id for reply in replies] == [second[0].metadata.message_id]


class _SlowGrid(InProcessGrid):
    """Node 2 answers the first message only when the second round is under way."""

    wakes_up = False

    def __init__(self) -> None:
        super().__init__(ClientApp(), 0)

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        waiting = [
            message
            for message_id, message in self._pending.items()
            if message_id in wanted and (message.metadata.dst_node_id == 1 or self.wakes_up)
        ]
        for message in waiting:
            del self._pending[message.metadata.message_id]
        return [Message(RecordDict(), reply_to=message) for message in waiting]


# What a client may answer is in test_federation.py; here, what the whole run makes of it.


def _failing(client_ids: set[int], rounds: set[int]):
    def wrap(client_app):
        def answer(message, context):
            if (
                message.metadata.message_type == "train"
                and context.node_config["partition-id"] in client_ids
                and message.content["config"]["server-round"] in rounds
            ):
                raise ValueError("the disk with the images is gone")
            return client_app(message, context)

        return answer

    return wrap


def test_a_round_in_which_all_clients_fail_is_told_and_the_run_goes_on(run_tiny):
    run = run_tiny("federation.num_rounds=3", wrap=_failing({0, 1, 2}, {2}))
    assert run.status().state is RunState.FINISHED
    first, second, third = (run.recording.read_round(server_round) for server_round in (1, 2, 3))
    assert len(first.updates) == len(third.updates) == len(second.failures) == 3
    assert torch.equal(flatten(second.global_parameters), flatten(third.global_parameters))
    events = read_events(run.events_path)
    assert [(event.server_round, event.message) for event in events if event.kind is EventKind.WARNING] == [
        (2, "fewer usable replies than federation.min_replies = 1; the global model is as it was")
    ]
    told = [event.message for event in events if event.kind is EventKind.REPLY_FAILED]
    assert [message.split(":")[0] for message in told] == ["client 0", "client 1", "client 2"]
    assert all("the disk with the images is gone" in message for message in told)


def test_a_run_that_never_trains_fails_with_client_round_and_reason(run_tiny):
    run = run_tiny(
        wrap=_failing({0, 1, 2}, {1, 2}),
        fails="no round changed the global model: .*round 2: client 0: .*the disk with the images is gone",
    )
    assert run.status().state is RunState.FAILED
    assert "client 2: " in run.status().message
    assert run.recording.rounds() == (1, 2)  # what was asked, and what failed, is written down
    assert len(run.recording.read_failures(1)) == 3
    with pytest.raises(RecordingError, match=r"final\.safetensors: the file is missing"):
        run.recording.read_final()


def test_many_failures_are_summed_up_for_the_eye_and_recorded_in_full(run_tiny):
    run = run_tiny("data.num_clients=9", "federation.num_rounds=1", wrap=_failing(set(range(8)), {1}))
    told = [event for event in read_events(run.events_path) if event.kind is EventKind.REPLY_FAILED]
    assert len(told) == 5
    assert len(run.recording.read_failures(1)) == 8


class _Grid:
    """A grid with nodes that come and go; node 9 fails, node 10 is a stranger."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def get_node_ids(self):
        return list(self.answers)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            self.asked.append(node_id)
            message.metadata.__dict__["_message_id"] = str(node_id)
            answer = self.answers[node_id]
            reply = pack_identity(answer or 0, reply_to=message)
            if answer is None:
                reply = Message(Error(code=2, reason="not ready"), reply_to=message)
            replies.append(reply)
        return replies


def test_a_node_that_comes_back_takes_its_client_s_place_and_strangers_do_not():
    grid = _Grid({1: 0, 2: 1})
    returned = []
    with task_identity():
        registry = register_clients(grid, 2, timeout=1)
        readmit_clients(registry, grid, timeout=1, on_return=returned.append)
        assert grid.asked == [1, 2]  # nobody new, nobody asked
        grid.answers = {1: 0, 8: 1, 9: None, 10: 7}
        readmit_clients(registry, grid, timeout=1, on_return=returned.append)
        readmit_clients(registry, grid, timeout=1, on_return=returned.append)
    assert returned == [1]
    assert dict(registry.nodes) == {0: 1, 1: 8}
    assert registry.clients[8] == registry.clients[2] == 1
    assert grid.asked == [1, 2, 8, 9, 10]


@dataclass(frozen=True, kw_only=True)
class Dies:
    """An attack on client 0 kills its process, once or always; one on client 1 raises."""

    marker: str
    always: bool = False

    def __call__(self, observation, *, generator, on_step=ignore_progress):
        # Nothing that an attack is given names the client; its randomness does.
        client = [seeds.generator(0, "attack", 1, one).initial_seed() for one in range(3)].index(
            generator.initial_seed()
        )
        if client == 1:
            raise ValueError("this client cannot be attacked")
        if client == 0 and (self.always or not Path(self.marker).exists()):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return InvertingGradients(steps=2)(observation, generator=generator, on_step=on_step)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "always"), [(1, False), (2, True)])
def test_a_killed_attack_worker_costs_its_own_task_at_most(run_tiny, tmp_path, workers, always):
    run = run_tiny("federation.num_rounds=1")
    config = AttackConfig(name="test_faults:Dies", options={"marker": str(tmp_path / "died"), "always": always})
    seen: list[TaskFailure] = []
    watch = CampaignObserver()
    watch.on_failed = seen.append
    failures = run_campaign(plan_campaign(run, config), workers=workers, observer=watch)
    assert seen == list(failures)
    reasons = {failure.key.client_id: failure.reason for failure in failures}
    is_lost = always or workers == 1  # with one worker it is known at once whose task it was
    assert reasons.keys() == ({0, 1} if is_lost else {1})
    assert reasons[1] == "ValueError: this client cannot be attacked"
    if is_lost:
        assert reasons[0].startswith("the worker process died (out of memory, or killed)")
    again = plan_campaign(run, config)
    assert [task.key.client_id for task in again.tasks] == sorted(reasons)
    if not always:
        assert {failure.key.client_id for failure in run_campaign(again, workers=workers)} == {1}


@pytest.mark.slow
def test_attack_workers_end_with_the_command_that_is_killed(run_tiny) -> None:
    run = run_tiny("federation.num_rounds=1")
    command = [str(Path(sys.executable).parent / "fl-sim"), "attack", str(run.folder), "--workers", "2", "-q"]
    command += ["--attack", "inverting_gradients", "--set", "steps=1000000"]
    workers: list[psutil.Process] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(workers := _busy(descendants(process.pid))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.kill()
        process.wait(10)
        deadline = time.monotonic() + 20
        while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        end_processes(workers, seconds=0)


def _busy(processes: frozenset[psutil.Process]) -> list[psutil.Process]:
    """Return the attack workers that are past their imports."""
    return [one for one in processes if "spawn_main" in " ".join(one.cmdline()) and one.cpu_times().user > 4]
