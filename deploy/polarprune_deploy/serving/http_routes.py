"""The routes that are not inference: health, metadata, configuration, statistics, index, page."""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import polarprune
from polarprune_deploy.serving.http_app import error_answer
from polarprune_deploy.serving.metrics import CONTENT_TYPE, render_metrics
from polarprune_deploy.serving.model_documents import (
    NO_CONTROL,
    config_document,
    metadata_document,
    server_document,
    statistics_documents,
)
from polarprune_deploy.serving.openapi import openapi_document
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import (
    BAD,
    REJECTED,
    UNKNOWN,
    WRONG_METHOD,
    RequestError,
)
from polarprune_deploy.serving.status_document import status_document
from polarprune_deploy.serving.status_page import PAGE, PAGE_HEADERS

MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
CONTROL_PATHS = tuple(f"/v2/repository/models/{{model}}/{verb}" for verb in ("load", "unload"))


def make_routes(repository: Repository) -> Starlette:
    """All of them, over one repository; none is left to a thread: they belong to its loop.

    It is as long as there are routes: one line of its own for each.
    """

    async def live(_: Request) -> Response:
        return JSONResponse({"live": not repository.broken}, 503 if repository.broken else 200)

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": repository.ready}, 200 if repository.ready else 503)

    async def server(_: Request) -> Response:
        return JSONResponse(server_document(polarprune.__version__))

    async def model_ready(request: Request) -> Response:
        facts = _model(repository, request).facts
        serving = not repository.leaving and not repository.broken
        return JSONResponse({"name": facts.name, "ready": serving}, 200 if serving else 503)

    async def metadata(request: Request) -> Response:
        return JSONResponse(metadata_document(_model(repository, request).facts))

    async def config(request: Request) -> Response:
        return JSONResponse(config_document(_model(repository, request).facts))

    async def statistics(request: Request) -> Response:
        asked = request.path_params
        found = statistics_documents(repository, asked.get("model", ""), asked.get("version", ""))
        return JSONResponse({"model_stats": found})

    async def index(_: Request) -> Response:
        return JSONResponse([vars(entry) for entry in repository.index()])

    async def control(_: Request) -> Response:
        raise RequestError(BAD, NO_CONTROL)

    async def metrics(_: Request) -> Response:
        return Response(render_metrics(repository), media_type=CONTENT_TYPE)

    async def status(_: Request) -> Response:
        return JSONResponse(status_document(repository))

    async def openapi(_: Request) -> Response:
        return JSONResponse(openapi_document())

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/openapi.json", openapi),
            Route("/status", status),
            Route("/metrics", metrics),
            Route("/v2", server),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2/models/stats", statistics),
            *(Route(path, metadata) for path in MODEL_PATHS),
            *(Route(f"{path}/ready", model_ready) for path in MODEL_PATHS),
            *(Route(f"{path}/config", config) for path in MODEL_PATHS),
            *(Route(f"{path}/stats", statistics) for path in MODEL_PATHS),
            Route("/v2/repository/index", index, methods=["POST"]),
            *(Route(path, control, methods=["POST"]) for path in CONTROL_PATHS),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _misdirected},
    )
    # A path with a slash too many is unknown: a redirection would go by the request's Host.
    app.router.redirect_slashes = False
    return app


def make_metrics_routes(repository: Repository) -> Starlette:
    """Metrics alone, for a port that only the monitoring reaches."""

    async def metrics(_: Request) -> Response:
        return Response(render_metrics(repository), media_type=CONTENT_TYPE)

    app = Starlette(
        routes=[Route("/metrics", metrics)],
        exception_handlers={HTTPException: _misdirected},
    )
    app.router.redirect_slashes = False
    return app


def _model(repository: Repository, request: Request) -> Any:
    found = request.path_params
    return repository.get(found["model"], found.get("version", ""))


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    status, headers, body = error_answer(error)
    return Response(body, status, {key.decode(): value.decode() for key, value in headers})


def _misdirected(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: UNKNOWN, 405: WRONG_METHOD}.get(error.status_code, REJECTED)
    words = "no such route" if kind == UNKNOWN else f"{request.method} is not taken here"
    response = _refused(request, RequestError(kind, words))
    response.headers.update(error.headers or {})
    return response
