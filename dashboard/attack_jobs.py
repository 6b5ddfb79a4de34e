"""Attacks that were started from the page: `fl-sim attack` in a process of its own, followed and ended here.

What such a process does stands in the run folder, where every page follows it. An attack that is cancelled, or ended
with the server, loses what was under way; the same attack started again goes on from there.
"""

import contextlib
import json
import math
import os
import re
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict

from attacker.attack_store import AttackSetting
from attacker.campaign import plan_campaign, resolve_setting
from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from dashboard.run_index import RunPlace, UnknownRunError
from fl_sim.config import AttackConfig, Experiment
from fl_sim.errors import ConfigError, brief
from fl_sim.options import parse_dataclass

_SECONDS_TO_END = 5.0
_MOST_RUNNING = 2
_MOST_LOG_BYTES = 4000
_MOST_KEPT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRequest:
    """What a page asks for.

    Attributes:
        attack: A name of ATTACKS.
        threat_model: A name of THREAT_MODELS.
        rounds: The rounds to attack.
        clients: The clients to attack; ``None`` takes all.
        seeds: Of the attack.
        options: Hyper-parameters that differ from what the experiment says, or from the attack's defaults.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    attack: str
    rounds: tuple[int, ...]
    clients: tuple[int, ...] | None = None
    threat_model: str = "honest_but_curious"
    seeds: tuple[int, ...] = (0,)
    options: dict[str, int | float | bool | str] = field(default_factory=dict[str, int | float | bool | str])


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """An attack that was started from the page.

    Attributes:
        job_id: Its name in URLs.
        run_id: The run.
        label: The attack setting, under which its results stand.
        attack: The attack.
        state: ``running``, ``finished``, ``failed`` or ``cancelled``.
        total: Updates that are attacked.
        seconds: Since it was started, or until it ended.
        message: The last that it said, where it failed.
        command: What was run, for a terminal.
    """

    job_id: str
    run_id: str
    label: str
    attack: str
    state: str
    total: int
    seconds: float
    message: str
    command: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Job:
    job_id: str
    run_id: str
    setting: AttackSetting
    total: int
    command: tuple[str, ...]
    process: "subprocess.Popen[bytes]"
    log: Any
    started: float
    ended: float | None = None
    cancelled: bool = False


class AttackJobs:
    """The attacks of one server. May be used by several threads."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start attacks with this command, to which ``attack RUN …`` is added."""
        self._command = tuple(command)
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self, place: RunPlace, request: AttackRequest) -> JobView:
        """Start an attack.

        Raises:
            ConfigError: If the request does not fit the run, the attack is under way already, or enough others are.
            RecordingError: If the run cannot be read.
        """
        planned = place.store.experiment().attack
        config = _config(place.store.experiment(), request)
        setting = resolve_setting(config)
        plan = plan_campaign(place.store, config)
        if not plan.tasks:
            raise ConfigError("all of it is attacked already: change the rounds, the clients, a seed or an option")
        arguments = _arguments(place, request, planned)
        with self._lock:
            running = [job for job in self._jobs.values() if job.process.poll() is None]
            if self._closed:
                raise ConfigError("the server is ending; start it again")
            if any(job.run_id == place.run_id and job.setting.label == setting.label for job in running):
                raise ConfigError("this very attack is under way already; wait until it has ended, or cancel it")
            if len(running) >= _MOST_RUNNING:
                raise ConfigError(f"expected fewer than {_MOST_RUNNING} attacks under way; wait, or cancel one")
            log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the job
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the server alone, which ends its attacks
            )
            job = _Job(
                job_id=secrets.token_hex(6),
                run_id=place.run_id,
                setting=setting,
                total=len(plan.tasks),
                command=("fl-sim", *arguments),
                process=process,
                log=log,
                started=time.monotonic(),
            )
            self._jobs[job.job_id] = job
            self._forget()
            return _view(job)

    def views(self, run_id: str) -> tuple[JobView, ...]:
        """Return the attacks that were started on a run, the newest first."""
        with self._lock:
            return tuple(_view(job) for job in reversed(self._jobs.values()) if job.run_id == run_id)

    def cancel(self, job_id: str) -> JobView:
        """End an attack; what it has finished stays.

        Raises:
            UnknownRunError: If there is none of that name.
        """
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise UnknownRunError("no such attack was started here; the server may have been started anew")
        if job.process.poll() is None:
            job.cancelled = True
            _end(job.process)
        return _view(job)

    def close(self) -> None:
        """End all attacks."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
        for job in jobs:
            if job.process.poll() is None:
                job.cancelled = True
                _end(job.process)
            job.log.close()

    def _forget(self) -> None:
        ended = [job for job in self._jobs.values() if job.process.poll() is not None]
        for job in ended[: max(0, len(self._jobs) - _MOST_KEPT)]:
            job.log.close()
            del self._jobs[job.job_id]


def _config(experiment: Experiment, request: AttackRequest) -> AttackConfig:
    """Return what `fl-sim attack` makes of a request; only parts of this project can be named."""
    planned = experiment.attack
    if request.attack not in list(ATTACKS):
        raise ConfigError(f"attack: expected one of {', '.join(ATTACKS)}, got {brief(repr(request.attack))}")
    if request.threat_model not in list(THREAT_MODELS):
        raise ConfigError(
            f"threat_model: expected one of {', '.join(THREAT_MODELS)}, got {brief(repr(request.threat_model))}"
        )
    for name, value in request.options.items():
        if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
            raise ConfigError(f"options: expected the name of a hyper-parameter, got {brief(repr(name))}")
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.\-]+", value) is None:
            raise ConfigError(f"options.{name}: expected a number or the name of a part, got {brief(repr(value))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"options.{name}: expected a finite number, got {value}")
    if not request.rounds:
        raise ConfigError("rounds: expected at least one, got none")
    if request.clients is not None and not request.clients:
        raise ConfigError("clients: expected at least one, got none")
    inherited = planned.options if request.attack == planned.name else {}
    changes = {
        "name": request.attack,
        "options": {**inherited, **request.options},
        "threat_model": request.threat_model,
        "rounds": request.rounds,
        "clients": request.clients or "all",
        "seeds": request.seeds,
        "workers": None,
    }
    return parse_dataclass(AttackConfig, {**asdict(planned), **changes})


def _arguments(place: RunPlace, request: AttackRequest, planned: AttackConfig) -> tuple[str, ...]:
    chosen: list[str] = []
    for name, value in request.options.items():
        chosen += ["--set", f"{name}={json.dumps(value)}"]
    # An experiment may plan for a cluster, to which a page does not reach out.
    workers = str(planned.workers) if isinstance(planned.workers, int) else str(os.cpu_count() or 1)
    return (
        "attack",
        str(place.store.folder),
        "--attack",
        request.attack,
        "--threat-model",
        request.threat_model,
        "--rounds",
        ",".join(map(str, request.rounds)),
        "--clients",
        "all" if request.clients is None else ",".join(map(str, request.clients)),
        "--seeds",
        ",".join(map(str, request.seeds)),
        "--workers",
        workers,
        *chosen,
        "--snapshots",
        "--quiet",
    )


def read_request(data: Mapping[str, Any]) -> AttackRequest:
    """Check what a page sends.

    Raises:
        ConfigError: If it is no request.
    """
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return parse_dataclass(AttackRequest, lists)


def _view(job: _Job) -> JobView:
    code = job.process.poll()
    if code is not None and job.ended is None:
        job.ended = time.monotonic()
    state = "running" if code is None else "cancelled" if job.cancelled else "failed" if code else "finished"
    return JobView(
        job_id=job.job_id,
        run_id=job.run_id,
        label=job.setting.label,
        attack=job.setting.name,
        state=state,
        total=job.total,
        seconds=(job.ended or time.monotonic()) - job.started,
        message=_last_words(job) if state == "failed" else "",
        command=job.command,
    )


def _last_words(job: _Job) -> str:
    if job.log.closed:
        return ""
    descriptor = job.log.fileno()  # its position is the child's as well: read without moving it
    content = os.pread(descriptor, _MOST_LOG_BYTES, max(0, os.fstat(descriptor).st_size - _MOST_LOG_BYTES))
    lines = content.decode(errors="replace").strip().splitlines()
    return brief(" ".join(lines[-3:]))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its workers; results are written whole or not at all."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
