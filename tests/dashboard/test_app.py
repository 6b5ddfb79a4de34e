"""The server: who may ask, what the attacker's view lets out, and that no run folder breaks it."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from attacker.attack_store import ResultKey
from dashboard.app import build_app
from dashboard.attack_jobs import AttackJobs
from dashboard.run_index import RunIndex
from dashboard.run_reader import RunReader
from dashboard.server import serve
from fl_sim.errors import ConfigError
from fl_sim.run_store import RunStore

PORT = 8420
ORIGIN = f"http://127.0.0.1:{PORT}"
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
# Says the last that it was asked for where a failed attack's message stands.
ECHO = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[15:]), file=sys.stderr); sys.exit(1)")
KEY = ResultKey(server_round=1, client_id=0, seed=0).folder_name
REQUEST = {"attack": "inverting_gradients", "rounds": [1], "clients": [0], "options": {"steps": 5}}


def client_for(root: Path, command: tuple[str, ...] = SLEEP) -> TestClient:
    app = build_app(RunIndex(root / "runs", root / "defended"), AttackJobs(command), port=PORT)
    return TestClient(app, base_url=ORIGIN, headers={"Origin": ORIGIN})


@pytest.fixture
def client(looked_at) -> Iterator[TestClient]:
    with client_for(looked_at) as client:
        yield client


def labels(root: Path, run: str = "plain") -> dict[bool, str]:
    """Return the attack settings of a run by whether they are realistic."""
    settings, _ = RunReader(RunStore(root / "runs" / run), sees_truth=True).settings()
    return {setting.threat_model.realistic: setting.label for setting in settings}


def routes(root: Path) -> list[str]:
    label = labels(root)[True]
    run = "/api/runs/plain"
    return [
        "/api/runs",
        run,
        f"{run}/rounds/1/{label}",
        f"{run}/results/{label}/{KEY}",
        f"{run}/cards/{label}/{KEY}",
        f"{run}/alike/{label}/{KEY}",
        f"{run}/training/{label}",
        f"{run}/spectrum/1/0",
        f"{run}/snapshots/{label}/{KEY}",
        "/api/tradeoff",
        "/api/tradeoff?group=study",
        f"/pictures/plain/results/{label}/{KEY}.png",
        f"/pictures/plain/snapshots/{label}/{KEY}.png",
        "/pictures/plain/private/0.png",
    ]


def seen(path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}view=attacker"


def test_the_attackers_view_is_the_same_where_no_truth_is_left(folders):
    paths = routes(folders)

    def answers() -> list[tuple[int, bytes]]:
        with client_for(folders) as client:
            return [(answer.status_code, answer.content) for path in paths for answer in [client.get(seen(path))]]

    with_truth = answers()
    full = json.dumps([client_for(folders).get(path).text for path in paths[:10]])
    for run in folders.glob("**/run.json"):
        for name in ("truth", "scores"):
            shutil.rmtree(run.parent / name)
        (run.parent / "experiment.toml").unlink()
    assert answers() == with_truth
    assert all(status in (200, 403, 404) for status, _ in with_truth)
    assert with_truth[-1][0] == 403  # a private image
    # The test is of use: without the switch, scores and labels are there.
    assert "mean_psnr_db" in full
    text = b"".join(content for _, content in with_truth[:9]).decode()
    for key, value in _leaves([json.loads(content) for _, content in with_truth[:9]]):
        if key in {"psnr_db", "mean_psnr_db", "guess_psnr_db", "label", "private", "true", "ssim", "lpips"}:
            assert value is None or key == "label", (key, value)
    assert labels_of_pairs(text) == {None}


def _leaves(value, key="") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry, key)
    else:
        yield key, value


def labels_of_pairs(text: str) -> set[object]:
    found: set[object] = set()
    decoder = json.JSONDecoder()
    place = 0
    while (place := text.find('{"private":', place)) >= 0:
        pair, place = decoder.raw_decode(text, place)
        found.add(pair["label"])
    return found


def test_what_was_granted_truth_is_not_there_for_the_attacker(client, looked_at):
    bound = labels(looked_at)[False]
    for path in (f"/api/runs/plain/results/{bound}/{KEY}", f"/pictures/plain/results/{bound}/{KEY}.png"):
        assert client.get(path).status_code == 200
        assert client.get(seen(path)).status_code == 404
    names = {model["name"] for model in client.get(seen("/api/runs/plain/parts")).json()["parts"]["threat_models"]}
    assert "honest_but_curious" in names
    assert not {name for name in names if "label_counts" in name or "batch" in name}
    body = {**REQUEST, "threat_model": "known_label_counts"}
    assert client.post(seen("/api/runs/plain/attacks"), json=body).status_code == 403
    assert client.get("/api/runs?view=anything").status_code == 400  # a slip of the pen is not the full view


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1:80", "127.0.0.1", ""])
def test_another_host_is_refused(client, host):
    for path in ("/", "/api/runs", "/static/main.js"):
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}"]
)
def test_only_the_servers_own_page_may_start_anything(looked_at, origin):
    with client_for(looked_at) as client:
        del client.headers["Origin"]
        headers = {} if origin is None else {"Origin": origin}
        assert client.post("/api/runs/plain/attacks", json=REQUEST, headers=headers).status_code == 403
        assert client.post("/api/jobs/x/cancel", headers=headers).status_code == 403
        assert client.get("/api/runs/plain").json()["jobs"] == []


def test_the_page_takes_nothing_from_elsewhere(client):
    for path in ("/", "/run/plain", "/api/runs", "/static/style.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    static = Path(__file__).parents[2] / "dashboard" / "static"
    for file in static.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert " style=" not in text  # the policy would refuse it


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..",
        "/api/runs/%2e%2e",
        "/api/runs/..%2f..%2fetc",
        "/api/runs/plain%2f..%2fother",
        "/api/runs/none",
        "/api/runs/plain/rounds/1/none",
        "/api/runs/plain/rounds/1/..",
        "/api/runs/plain/results/{label}/..%2f..%2foutcome",
        "/api/runs/plain/results/{label}/r0009-c00000-s0",
        "/api/runs/plain/results/{label}/r0001-c0-s0",
        "/api/runs/plain/spectrum/9/0",
        "/pictures/plain/private/9.png",
        "/pictures/plain/private/-1.png",
        "/pictures/plain/private/0+x.png",
        "/pictures/plain/results/{label}/x.png",
        "/api/none",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ],
)
def test_what_is_not_there_is_not_found(client, looked_at, path):
    answer = client.get(path.format(label=labels(looked_at)[True]))
    assert answer.status_code == 404 or (answer.status_code == 200 and "text/html" in answer.headers["Content-Type"])
    assert b"def build_app" not in answer.content


def test_what_has_not_changed_is_not_sent_again(client, looked_at):
    for path in ("/api/runs", f"/pictures/plain/results/{labels(looked_at)[True]}/{KEY}.png"):
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
    hidden = client.get("/pictures/plain/private/0.png")
    tag = {"If-None-Match": hidden.headers["ETag"]}
    assert client.get(seen("/pictures/plain/private/0.png"), headers=tag).status_code == 403


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nulls": lambda path: path.write_text(
        json.dumps(dict.fromkeys(json.loads(path.read_text()))) if path.suffix == ".json" else "\0\0"
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_damaged_file_breaks_the_server(folders, kind):
    every = routes(folders)
    paths = [*every[1:5], every[7], *every[11:12], *every[13:], *map(seen, every[1:3])]
    damaged = sorted(
        path
        for path in (folders / "runs/plain").rglob("*")
        if path.is_file() and path.suffix in (".json", ".toml", ".jsonl", ".safetensors")
        if not {"checkpoint", "c00002"} & set(path.parts) and "c00002" not in str(path) and "r0002" not in str(path)
    )
    assert len(damaged) > 12
    with client_for(folders) as client:
        for path in damaged:
            before = path.read_bytes()
            DAMAGE[kind](path)
            for route in paths:
                answer = client.get(route)
                assert answer.status_code < 500, (path, route)
                if answer.status_code != 200:
                    assert answer.json()["error"], (path, route)
            assert len(client.get("/api/runs").json()["runs"]) >= 3, path
            assert client.get("/api/tradeoff").status_code == 200
            path.write_bytes(before)


def wait_for(client: TestClient, state: str) -> dict:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        (job,) = client.get("/api/runs/plain").json()["jobs"]
        if job["state"] == state:
            return job
        time.sleep(0.05)
    raise AssertionError(f"expected {state}, got {job}")


def test_an_attack_is_started_once_followed_and_cancelled(looked_at):
    with client_for(looked_at) as client:
        started = client.post("/api/runs/plain/attacks", json=REQUEST)
        assert started.status_code == 201
        job = wait_for(client, "running")
        assert (job["attack"], job["total"]) == ("inverting_gradients", 1)
        again = client.post("/api/runs/plain/attacks", json=REQUEST)
        assert (again.status_code, "under way already" in again.json()["error"]) == (400, True)
        children = psutil.Process().children()
        (process,) = [child for child in children if "time.sleep(60)" in " ".join(child.cmdline())]
        assert os.getpgid(process.pid) == process.pid  # Ctrl-C in the terminal does not reach it by itself
        assert client.post(f"/api/jobs/{job['job_id']}/cancel").json()["state"] == "cancelled"
        assert not process.is_running()
        assert client.post("/api/jobs/none/cancel").status_code == 404


def test_attacks_end_with_the_server(looked_at):
    with client_for(looked_at) as client:
        client.post("/api/runs/plain/attacks", json=REQUEST)
        (process,) = [child for child in psutil.Process().children() if "time.sleep(60)" in " ".join(child.cmdline())]
    assert not process.is_running()


def test_the_command_line_is_a_list_and_a_failure_says_why(looked_at):
    with client_for(looked_at, ECHO) as client:
        body = {**REQUEST, "options": {"steps": 5, "keep": "best", "signed": False, "total_variation": 0.01}}
        assert client.post("/api/runs/plain/attacks", json=body).status_code == 201
        job = wait_for(client, "failed")
    said = job["command"][1:]
    assert json.loads(job["message"]) == said[14:]
    assert said[:2] == ["attack", str(looked_at / "runs/plain")]
    assert said[-2:] == ["--snapshots", "--quiet"]
    assert [said[place + 1] for place, word in enumerate(said) if word == "--set"] == [
        "steps=5",
        'keep="best"',
        "signed=false",
        "total_variation=0.01",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "os:system"}, "expected one of automatic"),
        ({"attack": "none"}, "expected one of automatic"),
        ({"threat_model": "os:path"}, "expected one of honest_but_curious"),
        ({"rounds": []}, "rounds"),
        ({"rounds": [9]}, "9 is not in the recording"),
        ({"rounds": ["1; true"]}, "rounds"),
        ({"clients": [77]}, "no stored update matches"),
        ({"options": {"steps": 0}}, "steps must be >= 1"),
        ({"options": {"unknown": 1}}, "unknown key 'unknown'"),
        ({"options": {"a b": 1}}, "name of a hyper-parameter"),
        ({"options": {"label_recovery": "os:system"}}, "name of a part"),
        ({"options": {"label_recovery": "x\ny"}}, "name of a part"),
        ({"options": {"steps": [1]}}, "options"),
        ({"workers": 64}, "workers"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_only_known_attacks_with_fitting_options_are_started(looked_at, changes, message):
    with client_for(looked_at) as client:
        answer = client.post("/api/runs/plain/attacks", json={**REQUEST, **changes})
        assert answer.status_code == 400
        assert message in answer.json()["error"]
        assert client.get("/api/runs/plain").json()["jobs"] == []
        for body in (b"[]", b"nothing", b'"x"'):
            headers = {"Content-Type": "application/json"}
            assert client.post("/api/runs/plain/attacks", content=body, headers=headers).status_code == 400


def test_what_is_attacked_already_is_not_attacked_again(client):
    body = {"attack": "fedavg_leakage", "rounds": [1], "options": {"steps": 3}}
    answer = client.post("/api/runs/plain/attacks", json=body)
    assert (answer.status_code, "attacked already" in answer.json()["error"]) == (400, True)


def test_no_runs_and_no_folder_are_no_error(tmp_path):
    with client_for(tmp_path / "nowhere") as client:
        assert client.get("/api/runs").json()["runs"] == []
        assert client.get("/api/tradeoff").json()["points"] == []
        assert client.get("/api/tradeoff?group=none").json()["points"] == []


def test_a_taken_port_is_a_clear_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"got {port}, which another program has taken; take another one"):
            serve(tmp_path, tmp_path, port=port, command=SLEEP, on_ready=lambda address: None)
