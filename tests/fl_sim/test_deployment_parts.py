"""The parts of a deployment that need no SuperLink."""

import math
import os
import signal
import ssl
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import psutil
import pytest

from fl_sim.config import DataConfig, read_experiment
from fl_sim.deployment.address import parse_superlink_address
from fl_sim.deployment.bundle import write_app
from fl_sim.deployment.client import with_own_data
from fl_sim.deployment.control import SuperLinkError
from fl_sim.deployment.credentials import main as make_credentials
from fl_sim.deployment.example_data import write_example_data
from fl_sim.deployment.health import is_healthy
from fl_sim.engines import deployment
from fl_sim.errors import ConfigError, FederationError, MissingDataError
from fl_sim.federated_data import load_federated_data
from fl_sim.process_tree import descendants, end_processes
from fl_sim.run_store import create_run


@pytest.mark.parametrize(
    "text", ["", "8000", ":8000", "here", "here:", "here:0", "here:65536", "here:x", "http://h:80"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_superlink_address(text)


def test_an_address_and_its_certificate(tmp_path):
    assert str(parse_superlink_address("[::1]:8000")) == "[::1]:8000"
    with pytest.raises(ConfigError, match="is not a file"):
        parse_superlink_address("here:8000", tmp_path / "ca.crt")


def test_credentials_are_private_and_never_overwritten(tmp_path, capsys):
    folder = tmp_path / "credentials"
    make_credentials([str(folder), "--hosts", "superlink,127.0.0.1", "--clients", "2"])
    files = {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*.*")}
    assert files == {
        "ca.crt": 0o644,
        "superlink/server.crt": 0o644,
        "superlink/server.key": 0o600,
        "public/client-0.pub": 0o644,
        "public/client-1.pub": 0o644,
    }
    assert {(folder / name / "key").stat().st_mode & 0o777 for name in ("client-0", "client-1")} == {0o600}
    assert (folder / "client-0" / "key").read_bytes() != (folder / "client-1" / "key").read_bytes()
    with pytest.raises(SystemExit) as caught:
        make_credentials([str(folder)])
    assert caught.value.code == 2
    assert "is there already" in capsys.readouterr().err


def test_health_is_success_over_a_trusted_connection_only(tmp_path):
    make_credentials([str(tmp_path / "a"), "--hosts", "localhost,127.0.0.1", "--clients", "0"])
    make_credentials([str(tmp_path / "b"), "--hosts", "localhost,127.0.0.1", "--clients", "0"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "a" / "superlink" / "server.crt", tmp_path / "a" / "superlink" / "server.key")
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"
    assert is_healthy(f"{url}/health", str(tmp_path / "a" / "ca.crt"))
    assert not is_healthy(f"{url}/elsewhere", str(tmp_path / "a" / "ca.crt"))
    assert not is_healthy(f"{url}/health", str(tmp_path / "b" / "ca.crt"))
    assert not is_healthy(f"http://127.0.0.1:{server.server_port}/health")
    server.shutdown()
    server.server_close()
    assert not is_healthy(f"{url}/health", str(tmp_path / "a" / "ca.crt"))


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *arguments):
        """Print nothing."""


def test_each_machine_finds_its_own_images_and_no_others(tmp_path):
    write_example_data(tmp_path / "data", num_clients=2, examples_per_client=4)
    experiment = read_experiment(
        None,
        [
            "data.dataset=arrays",
            "data.partition=by_client",
            "data.partition_options={partial=true}",
            "data.num_clients=2",
            f"data.options={{path='{tmp_path / 'data' / 'public' / 'images.npz'}', num_classes=10, test_fraction=0}}",
        ],
    )
    assert with_own_data(experiment, {"partition-id": 1}) == experiment
    own = str(tmp_path / "data" / "client-1" / "images.npz")
    at_the_client = load_federated_data(with_own_data(experiment, {"data-path": own}).data, 0)
    assert len(at_the_client.images(1)) == len(at_the_client.labels(1)) == 4
    with pytest.raises(MissingDataError, match="has no image of client 0"):
        at_the_client.images(0)
    at_the_server = load_federated_data(experiment.data, 0)
    assert len(at_the_server.dataset.test_images) > 100
    for client_id in range(2):
        with pytest.raises(MissingDataError, match=f"has no image of client {client_id}"):
            at_the_server.labels(client_id)


def test_without_partial_a_missing_client_is_a_mistake(tmp_path):
    write_example_data(tmp_path / "data", num_clients=2)
    path = str(tmp_path / "data" / "client-1" / "images.npz")
    data = DataConfig(
        dataset="arrays", partition="by_client", num_clients=2, options={"path": path, "test_fraction": 0}
    )
    with pytest.raises(ConfigError, match="has no images of client 0"):
        load_federated_data(data, 0)


def test_clients_are_not_told_what_the_server_does_with_their_updates(tiny, tmp_path):
    run = create_run(tiny("attack.name=inverting_gradients", "recording.clients=[1]", "seed=7"), tmp_path / "runs")
    write_app(tmp_path / "app", run, "clients.client_app:build_client_app")
    shown = read_experiment(tmp_path / "app" / "experiment.toml")
    assert (shown.seed, shown.data, shown.training) == (7, run.experiment().data, run.experiment().training)
    assert not any(b"inverting_gradients" in path.read_bytes() for path in (tmp_path / "app").iterdir())
    assert shown.recording.clients == "all"


class _Control:
    """Answers with the numbers of SuperNodes that it is given; ``None`` is silence."""

    def __init__(self, *answers: int | None) -> None:
        self._answers = list(answers)

    def num_online(self) -> int:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise SuperLinkError("nobody there")
        return answer


def _await(control: _Control, *, seconds: float = 60, bears: float = 0.0) -> None:
    deployment._await_supernodes(
        control,  # type: ignore[arg-type]
        2,
        time.monotonic() + seconds,
        deployment._Silence(bears),
        check=lambda: None,
        describe_missing=lambda: "supernode-1 (still running), last printed: hello",
    )


def test_waiting_for_supernodes(monkeypatch):
    monkeypatch.setattr(deployment, "_SECONDS_BETWEEN_LOOKS", 0.001)
    _await(_Control(None, 0, 1, 2), bears=math.inf)
    with pytest.raises(FederationError, match="expected 2 SuperNodes online, got 3; stop the others"):
        _await(_Control(1, 3))
    with pytest.raises(FederationError, match=r"got 1 within .*reply_timeout; missing: supernode-1 .* hello"):
        _await(_Control(1), seconds=0)
    with pytest.raises(SuperLinkError, match="nobody there"):
        _await(_Control(None))


def test_descendants_are_found_and_ended_in_whatever_session():
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, "
        "signal.SIG_IGN); print(1, flush=True); time.sleep(60)'], start_new_session=True)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (child,) = descendants(process.pid)
    process.terminate()
    process.wait()
    end_processes({child}, seconds=0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # gone, or waiting to be reaped
    process.stdout.close()


def test_a_process_that_took_over_an_id_is_left_alone(monkeypatch):
    process = subprocess.Popen(["sleep", "60"])
    (found,) = (one for one in descendants(os.getpid()) if one.pid == process.pid)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "is_running", lambda _: False)  # what psutil says when the start time differs
        end_processes({found}, seconds=0)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    end_processes({found}, seconds=0)
    assert process.wait(10) == -signal.SIGKILL
