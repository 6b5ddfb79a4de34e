"""The routes: a name in a URL -> a view -> JSON, or a sheet of images -> PNG. Every route knows who looks.

/api/…?view=attacker        what an honest-but-curious server knows, and nothing computed from the truth
/pictures/…                 sheets
everything else             the one page, which reads its own address
"""

import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from attacker.attack_store import ResultKey
from attacker.snapshots import snapshot_path
from attacker.threat_models import THREAT_MODELS
from dashboard.alike_view import alike_view
from dashboard.attack_jobs import AttackJobs, read_request
from dashboard.card_view import card_view, result_view, round_cards
from dashboard.file_cache import FileCache, signature
from dashboard.guard import Guard
from dashboard.json_text import json_bytes
from dashboard.parts_view import PlannedView, parts_view
from dashboard.pictures import draw_sheet
from dashboard.run_index import RunIndex, UnknownRunError
from dashboard.run_reader import HiddenError, RunReader, Setting, uses_truth
from dashboard.run_view import defenses_text, run_view, runs_view
from dashboard.snapshot_view import snapshot_view
from dashboard.spectrum_view import spectrum_view
from dashboard.tradeoff_view import tradeoff_view
from dashboard.training_view import training_view
from fl_sim.errors import ConfigError, FlSimError, MissingDataError

_STATIC = Path(str(resources.files("dashboard").joinpath("static")))
_SHEETS = FileCache(256)
_STATUS = {UnknownRunError: 404, HiddenError: 403, ConfigError: 400, MissingDataError: 404}
_DAMAGED = 422
_MOST_BYTES_OF_REQUEST = 20_000


def _sees_truth(view: Annotated[str, Query(pattern="^(full|attacker)$")] = "full") -> bool:
    return view != "attacker"


SeesTruth = Annotated[bool, Depends(_sees_truth)]


def build_app(index: RunIndex, jobs: AttackJobs, *, port: int) -> Guard:
    """Return the application.

    Args:
        index: The runs.
        jobs: Attacks that the page starts; ended with the application.
        port: At which it is served; requests for another address are refused.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        jobs.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(FlSimError, _on_error)
    app.add_exception_handler(OSError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    _add_views(app, index, jobs)
    _add_pictures(app, index)
    _add_attacks(app, index, jobs)
    _add_page(app)
    return Guard(app, port=port)


def _add_views(app: FastAPI, index: RunIndex, jobs: AttackJobs) -> None:
    @app.get("/api/runs")
    def runs(request: Request, sees_truth: SeesTruth) -> Response:
        return _json(request, runs_view(index, sees_truth=sees_truth))

    @app.get("/api/runs/{run_id}")
    def run(request: Request, run_id: str, sees_truth: SeesTruth) -> Response:
        view = run_view(index.find(run_id), sees_truth=sees_truth)
        return _json(request, {"run": view, "jobs": jobs.views(run_id)})

    @app.get("/api/runs/{run_id}/rounds/{server_round}/{attack}")
    def cards(request: Request, run_id: str, server_round: int, attack: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        return _json(request, {"cards": round_cards(reader, setting, server_round)})

    @app.get("/api/runs/{run_id}/results/{attack}/{key}")
    def result(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        return _json(request, result_view(reader, setting, _key(setting, key)))

    @app.get("/api/runs/{run_id}/cards/{attack}/{key}")
    def card(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        view = run_view_line(index, run_id, reader)
        found = card_view(reader, setting, _key(setting, key))
        return _json(
            request,
            {
                "card": found,
                "name": setting.attack.name,
                "threat_model": setting.threat_model.name,
                "realistic": setting.threat_model.realistic,
                **view,
            },
        )

    @app.get("/api/runs/{run_id}/alike/{attack}/{key}")
    def alike(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        place = index.find(run_id)
        setting = RunReader(place.store, sees_truth=sees_truth).setting(attack)
        found = alike_view(index, place, attack, _key(setting, key), sees_truth=sees_truth)
        return _json(request, {"alike": found})

    @app.get("/api/runs/{run_id}/training/{attack}")
    def training(request: Request, run_id: str, attack: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        return _json(request, {"rounds": training_view(reader, setting)})

    @app.get("/api/runs/{run_id}/spectrum/{server_round}/{client_id}")
    def spectrum(request: Request, run_id: str, server_round: int, client_id: int, sees_truth: SeesTruth) -> Response:
        reader = RunReader(index.find(run_id).store, sees_truth=sees_truth)
        return _json(request, spectrum_view(reader, server_round, client_id))

    @app.get("/api/runs/{run_id}/snapshots/{attack}/{key}")
    def snapshot(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        return _json(request, snapshot_view(reader, setting, _parsed(key)))

    @app.get("/api/tradeoff")
    def tradeoff(request: Request, sees_truth: SeesTruth, group: str = "") -> Response:
        return _json(request, tradeoff_view(index, group, sees_truth=sees_truth))


def _add_pictures(app: FastAPI, index: RunIndex) -> None:
    @app.get("/pictures/{run_id}/results/{attack}/{key}.png")
    def reconstructions(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        parsed = _key(setting, key)
        path = reader.result_path(setting, parsed)
        return _sheet(request, path, "result", lambda: draw_sheet(reader.reconstruction(setting, parsed).images))

    @app.get("/pictures/{run_id}/snapshots/{attack}/{key}.png")
    def forming(request: Request, run_id: str, attack: str, key: str, sees_truth: SeesTruth) -> Response:
        reader, setting = _open(index, run_id, attack, sees_truth=sees_truth)
        parsed = _parsed(key)
        found = reader.snapshot(setting, parsed)
        if found is None:
            raise UnknownRunError("this attack shows no images: it has ended, or was started without --snapshots")
        path = snapshot_path(setting.store.folder / parsed.folder_name)
        return _sheet(request, path, "snapshot", lambda: draw_sheet(found.images))

    @app.get("/pictures/{run_id}/private/{clients}.png")
    def private(request: Request, run_id: str, clients: str, sees_truth: SeesTruth) -> Response:
        reader = RunReader(index.find(run_id).store, sees_truth=sees_truth)
        if not sees_truth:
            raise HiddenError("the attacker's view does not show a private image")
        numbers = clients.split("+")
        if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
            raise UnknownRunError(f"expected clients such as 3 or 3+5, got {clients[:80]!r}")
        chosen = tuple(map(int, numbers))
        num_clients = reader.manifest().num_clients
        if any(client_id >= num_clients for client_id in chosen):
            raise UnknownRunError(f"expected clients below {num_clients}, got {clients[:80]!r}")
        return _sheet(
            request, reader.truth_path, f"private {chosen}", lambda: draw_sheet(reader.private_batch(chosen).images)
        )


def _add_attacks(app: FastAPI, index: RunIndex, jobs: AttackJobs) -> None:
    @app.get("/api/runs/{run_id}/parts")
    def parts(request: Request, run_id: str, sees_truth: SeesTruth) -> Response:
        place = index.find(run_id)
        planned = place.store.experiment().attack  # the attack is the server's own choice
        view = PlannedView(attack=planned.name, threat_model=planned.threat_model, options=planned.options)
        return _json(request, {"parts": parts_view(sees_truth=sees_truth), "planned": view})

    @app.post("/api/runs/{run_id}/attacks")
    def start(run_id: str, sees_truth: SeesTruth, body: Annotated[Any, Body()]) -> Response:
        if not isinstance(body, dict) or len(json.dumps(body)) > _MOST_BYTES_OF_REQUEST:
            raise ConfigError("expected a small JSON object with the attack, its rounds, clients and options")
        request = read_request(body)
        hidden = {name for name, model in THREAT_MODELS.items() if not sees_truth and uses_truth(model)}
        if request.threat_model in hidden:
            raise HiddenError(f"the attacker's view grants no piece of the truth, as {request.threat_model!r} does")
        return Response(json_bytes(jobs.start(index.find(run_id), request)), 201, media_type="application/json")

    @app.post("/api/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> Response:
        return Response(json_bytes(jobs.cancel(job_id)), media_type="application/json")


def _add_page(app: FastAPI) -> None:
    app.mount("/static", _Revalidated(directory=_STATIC))

    @app.get("/api/{rest:path}")
    def no_view(rest: str) -> Response:
        raise UnknownRunError(f"there is nothing at /api/{rest[:80]}")

    @app.get("/{rest:path}")
    def page(rest: str) -> Response:
        # Any address of the page; it says itself where there is nothing.
        headers = {"Cache-Control": "no-cache"}
        return Response((_STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


class _Revalidated(StaticFiles):
    """Static files that a browser asks for again after an update of the project."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def run_view_line(index: RunIndex, run_id: str, reader: RunReader) -> dict[str, str]:
    """Return what names a run beside a card."""
    manifest = reader.manifest()
    return {"run_id": run_id, "run_name": index.find(run_id).store.folder.name, "defenses": defenses_text(manifest)}


def _open(index: RunIndex, run_id: str, attack: str, *, sees_truth: bool) -> tuple[RunReader, Setting]:
    reader = RunReader(index.find(run_id).store, sees_truth=sees_truth)
    return reader, reader.setting(attack)


def _parsed(text: str) -> ResultKey:
    key = ResultKey.parse(text)
    if key is None or key.folder_name != text:
        raise UnknownRunError(f"expected a result such as r0001-c00003-s0, got {text[:80]!r}")
    return key


def _key(setting: Setting, text: str) -> ResultKey:
    key = _parsed(text)
    if not (setting.store.folder / key.folder_name / "outcome.json").is_file():
        raise UnknownRunError(f"this attack has no result {text[:80]!r}: it is not there yet, or was deleted")
    return key


def _json(request: Request, view: object) -> Response:
    content = json_bytes(view)
    return _tagged(request, hashlib.sha256(content).hexdigest()[:32], lambda: content, "application/json")


def _sheet(request: Request, path: Path, kind: str, draw: Callable[[], bytes]) -> Response:
    """Return a sheet, drawn only where the browser does not have it already."""
    tag = hashlib.sha256(repr((kind, str(path), signature(path))).encode()).hexdigest()[:32]
    return _tagged(request, tag, lambda: _SHEETS.get(f"sheet {kind}", path, draw), "image/png")


def _tagged(request: Request, tag: str, content: Callable[[], bytes], media_type: str) -> Response:
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content(), media_type=media_type, headers=headers)


async def _on_error(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), _DAMAGED)
    return JSONResponse({"error": str(error)}, status_code=status, headers={"Cache-Control": "no-store"})


async def _on_invalid(request: Request, error: Exception) -> Response:
    problem = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(map(str, problem.get("loc", ())))
    return JSONResponse({"error": f"{where}: {problem.get('msg', 'does not fit')}"}, status_code=400)
