"""The compose files: who sees what, and their commands as processes: TLS and keys, who is refused, a federation.

No container is started anywhere in these tests.
"""

import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from composition import BASE, ROOT, TLS, Composition, read_services

from fl_sim.deployment.control import SuperLinkControl, SuperLinkError
from fl_sim.deployment.credentials import make_credentials
from fl_sim.deployment.example_data import write_example_data
from fl_sim.process_tree import descendants, end_processes
from fl_sim.run_store import RunState, list_runs

SUPERNODES = ("supernode-0", "supernode-1", "supernode-2")
FILES = pytest.mark.parametrize("files", [(BASE,), (BASE, TLS)], ids=["plain", "tls"])


@FILES
def test_docker_compose_reads_the_files_as_we_do(files):
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose, which is not installed")
    command = ["docker-compose", *(part for file in files for part in ("-f", str(file)))]
    done = subprocess.run([*command, "config"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    theirs, ours = yaml.safe_load(done.stdout)["services"], read_services(*files)
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        assert theirs[name]["command"] == service["command"]
        assert theirs[name].get("depends_on", {}) == service["depends_on"]
        targets = sorted(volume.removesuffix(":ro").split(":")[-1] for volume in service["volumes"])
        assert sorted(volume.split(":")[-2] for volume in theirs[name]["volumes"]) == targets


@FILES
def test_private_data_and_keys_are_mounted_into_their_supernode_only(files):
    services = read_services(*files)
    users: dict[str, list[str]] = {}
    for name, service in services.items():
        for volume in service["volumes"]:
            users.setdefault(volume.split(":")[0], []).append(name)
    for client_id, name in enumerate(SUPERNODES):
        assert users[f"./deploy/data/client-{client_id}"] == [name]
        if TLS in files:
            assert users[f"./deploy/credentials/client-{client_id}/key"] == [name]
        # They differ in nothing else, so that the tests below need not run all of them.
        *command, node_config = services[name]["command"]
        assert command == services["supernode-0"]["command"][:-1]
        assert node_config == f'partition-id={client_id} num-partitions=3 data-path="/data/images.npz"'
    assert users["recordings"] == ["superlink", "runner"]
    assert users["./deploy/data/public"] == ["superlink", "runner"]
    assert users["report"] == ["runner", "report"]
    if TLS in files:
        assert users["./deploy/credentials/superlink/server.key"] == ["superlink"]


@FILES
def test_only_the_page_is_published_and_on_the_loopback_interface_only(files):
    services = read_services(*files)
    networks = yaml.safe_load(BASE.read_text())["networks"]
    assert networks["federation"]["internal"] is True
    for name, service in services.items():
        assert service.get("ports", []) == (["127.0.0.1:8080:8080"] if name == "report" else [])
        assert service["networks"] == (["page"] if name == "report" else ["federation"])
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
    if TLS in files:
        assert not any("--insecure" in service["command"] for service in services.values())


def test_the_image_is_pinned_and_its_user_is_not_root():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER fl-sim"]
    (version,) = [line for line in lines if line.startswith("ARG PYTHON_VERSION=")]
    assert len(version.split(".")) == 3
    assert sum("--constraint constraints.txt" in line for line in lines) == 2
    copied = {part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert all((ROOT / part).exists() for part in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= copied


@pytest.fixture
def compose(tmp_path):
    """A function that makes a `Composition` with data and credentials of its own; everything it started ends."""
    started = []

    def make(*files: Path) -> Composition:
        write_example_data(tmp_path / "data", num_clients=3, examples_per_client=6)
        make_credentials(tmp_path / "credentials", hosts=["superlink", "127.0.0.1"], num_clients=3)
        text = (ROOT / "deploy" / "digits.toml").read_text()
        experiment = tmp_path / "experiment.toml"
        experiment.write_text(text.replace("/data/images.npz", str(tmp_path / "data" / "public" / "images.npz")))
        variables = {
            f"CLIENT_{client_id}_DATA": str(tmp_path / "data" / f"client-{client_id}") for client_id in range(3)
        }
        variables |= {
            "PUBLIC_DATA": str(tmp_path / "data" / "public"),
            "CREDENTIALS": str(tmp_path / "credentials"),
            "EXPERIMENT": str(experiment),
        }
        composition = Composition(read_services(*files, variables=variables), tmp_path)
        started.append(composition)
        return composition

    yield make
    for composition in started:
        _stop(composition)


@pytest.mark.slow
@pytest.mark.xdist_group("deployment")
def test_tls_and_keys_admit_the_registered_whose_private_data_nobody_else_sees(compose, tmp_path):
    composition = compose(BASE, TLS)
    composition.start("superlink")
    _await(lambda: composition.is_healthy("superlink"), composition)

    # Before anybody is registered: a SuperNode with a key of its own, and one without TLS. Each tries once.
    once = ["--max-retries", "1"]
    unregistered = composition.start(
        "supernode-0", command=[*composition.services["supernode-0"]["command"], *once], label="unregistered"
    )
    plain_text = composition.start(
        "supernode-1", command=[*read_services(BASE)["supernode-1"]["command"], *once], label="plain-text"
    )
    assert unregistered.wait(400) != 0
    assert "Failed to activate SuperNode" in composition.log("unregistered").read_text()
    assert plain_text.wait(400) != 0
    assert "Failed to initialize the connection" in composition.log("plain-text").read_text()
    with pytest.raises(SuperLinkError), SuperLinkControl(composition.address) as control:
        control.num_online()  # nor is a person at the command line heard without TLS

    # The same commands once the keys are registered; registering twice changes nothing.
    assert composition.start("registrar").wait(400) == 0, composition.logs()
    with SuperLinkControl(replace(composition.address, root_certificates=tmp_path / "credentials/ca.crt")) as control:
        assert control.num_online() == 0
        for client_id in range(3):
            node_id = control.register(tmp_path / "credentials" / "public" / f"client-{client_id}.pub")
            assert f"client-{client_id}: SuperNode {node_id}\n" in composition.log("registrar").read_text()
    for name in SUPERNODES[:2]:
        composition.start(name)
    settings = ["--no-attack", "--set", "federation.num_rounds=1", "--set", "data.num_clients=2"]
    runner = composition.start("runner", command=[*composition.services["runner"]["command"], *settings])
    assert runner.wait(500) == 0, composition.logs()
    (run,) = list_runs(tmp_path / "volumes" / "recordings")
    assert run.status().state is RunState.FINISHED
    assert [update.num_examples for update in run.recording.read_round(1).updates] == [6, 6]
    assert [path.name for path in (tmp_path / "volumes" / "report").iterdir()] == ["index.html"]
    # The server's side cannot compare with images that only the SuperNodes have, and says so.
    assert not run.scores.exists()
    assert "has no image of client 0" in " ".join(composition.log("runner").read_text().split())
    _assert_no_secret_in_what_was_written(tmp_path)


def _assert_no_secret_in_what_was_written(folder: Path) -> None:
    credentials = [path.read_bytes() for path in (folder / "credentials").rglob("*") if path.is_file()]
    keys = [content for content in credentials if b"PRIVATE KEY" in content]
    assert len(keys) == 4  # of the SuperLink and of three SuperNodes
    secrets = [line for key in keys for line in key.splitlines() if len(line) > 40 and b"-" not in line]
    assert len(secrets) >= len(keys)
    written = [*folder.glob("*.log"), *(folder / "volumes").rglob("*"), *(folder / "homes").rglob("*")]
    contents = [path.read_bytes() for path in written if path.is_file()]
    assert len(contents) > 10
    assert not [secret for secret in secrets for content in contents if secret in content]


@pytest.mark.slow
@pytest.mark.xdist_group("deployment")
def test_a_stopped_runner_stops_its_run_and_leaves_the_superlink_up(compose, tmp_path):
    composition = compose(BASE)
    composition.start("superlink")
    _await(lambda: composition.is_healthy("superlink"), composition)
    for name in SUPERNODES[:2]:
        composition.start(name)
    command = [*composition.services["runner"]["command"], "--set", "data.num_clients=2"]
    runner = composition.start("runner", command=command)
    _await(lambda: "Receiving: query message" in composition.log("supernode-1").read_text(), composition)
    assert all(composition.is_healthy(name) for name in SUPERNODES[:2])
    runner.terminate()
    assert runner.wait(60) == 143, composition.logs()
    assert '"POST /v1/control/stop-run HTTP/1.1" 200' in composition.log("superlink").read_text()
    (run,) = list_runs(tmp_path / "volumes" / "recordings")
    assert run.status().state is RunState.FAILED
    assert composition.is_healthy("superlink")
    with SuperLinkControl(composition.address) as control:
        assert control.num_online() == 2


def _await(condition: Callable[[], bool], composition: Composition) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, composition.logs()
        time.sleep(0.2)


def _stop(composition: Composition) -> None:
    helpers = frozenset().union(*(descendants(process.pid) for process in composition.processes.values()))
    for process in composition.processes.values():
        process.terminate()
    for process in composition.processes.values():
        process.wait(30)
    end_processes(helpers, seconds=10)
