"""The HTTP side, described as OpenAPI 3.1: every route, whatever it may answer.

For tools: clients, tests and proxies that read it. Served at /openapi.json.
"""

from typing import Any

import polarprune
from polarprune_deploy.serving.metrics import CONTENT_TYPE as PROMETHEUS
from polarprune_deploy.serving.openapi_schemas import COUNT, TEXT, Schema, make_schemas, ref

JSON, BYTES = "application/json", "application/octet-stream"
BINARY: Schema = {"type": "string", "format": "binary"}
EXPLAINED = """\
Open Inference Protocol v2 with binary tensors, Triton's configuration, statistics and index, and
classification of images. Content types of requests are not looked at, but for forms. Bodies may be
coded with gzip or deflate. JSON is refused where it holds a key twice, an integer beyond 64 bits or
written with a point, or a number that is not finite. A refusal is 4xx, or 503 where another try may
be worth it.
"""
ERRORS = {
    400: "What was sent cannot be understood, or does not fit the model.",
    401: "The bearer token that this server asks for is missing or wrong.",
    404: "No such model, version or route.",
    408: "Headers or body did not come in time; the connection ends.",
    413: "A body, its JSON or its image is too large.",
    415: "A coding or a kind of image that is not read.",
    431: "The request's line and headers are too large; the connection ends.",
    503: "Full, loading, stopping, late for its own deadline, or too many connections.",
}
ANYWHERE = (400, 408, 431, 503)
"""May be answered before a request is even looked at."""
MODEL = (401, 404)
BODY = (*MODEL, 413, 415)


def openapi_document() -> dict[str, Any]:
    """The whole description."""
    paths = {
        "/": _get("page", "A page that shows the models", _ok("text/html; charset=utf-8", TEXT)),
        "/openapi.json": _get("openapi", "This description", _json({"type": "object"}), (401,)),
        "/status": _get("status", "What the page shows", _json(ref("Status")), (401,)),
        "/metrics": _get("metrics", "Triton's metrics", _ok(PROMETHEUS, TEXT), (401,)),
        "/v2": _get("server", "The server", _json(ref("Server")), (401,)),
        "/v2/health/live": _health("live", "Whether the process can answer", "Live"),
        "/v2/health/ready": _health("ready", "Whether every model serves", "Ready"),
        "/v2/models/stats": _get(
            "statistics", "Of all models that ever served", _json(ref("Statistics")), (401,)
        ),
        "/v2/repository/index": {"post": _index()},
    }
    for verb in ("load", "unload"):
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {
            "parameters": [_in_path("model")],
            "post": _operation(f"{verb}_model", "Refused: the folder decides", {}, (400, 401)),
        }
    for versions, named in (("", ""), ("/versions/{version}", "_version")):
        paths |= _of_model(f"/v2/models/{{model}}{versions}", named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "polarprune serve",
            "version": polarprune.__version__,
            "description": EXPLAINED,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": make_schemas(),
            "headers": _headers(),
            "responses": {f"Refused{status}": _refusal(status) for status in ERRORS},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where the server was started with --token-file.",
                }
            },
        },
    }


def _of_model(path: str, named: str) -> dict[str, Any]:
    """All routes of one model; `named` tells their operations apart from those without version."""
    parameters = [_in_path("model")] + ([_in_path("version")] if named else [])
    ready = {
        200: _json(ref("ModelReady")),
        503: _json({"anyOf": [ref("ModelReady"), ref("Error")]}, ERRORS[503]),
    }
    operations = {
        "": {"get": _operation(f"model{named}", "What it takes and gives",
                               {200: _json(ref("Model"))}, MODEL)},
        "/ready": {"get": _operation(f"model_ready{named}", "Whether it serves", ready, MODEL)},
        "/config": {"get": _operation(f"model_config{named}", "Triton's configuration",
                                      {200: _json(ref("ModelConfig"))}, MODEL)},
        "/stats": {"get": _operation(f"model_statistics{named}", "Triton's statistics",
                                     {200: _json(ref("Statistics"))}, MODEL)},
        "/infer": {"post": _infer(named)},
        "/classify": {"post": _classify(named)},
    }  # fmt: skip
    return {path + end: {"parameters": parameters} | found for end, found in operations.items()}


def _infer(named: str) -> dict[str, Any]:
    length = "Inference-Header-Content-Length"
    binary = {
        BYTES: {
            "schema": BINARY
            | {
                "description": "JSON as InferRequest, then the little-endian, row-major bytes of "
                "the binary inputs in their order; where the length is 0, those of one input alone."
            }
        }
    }
    answered = _json(ref("InferResponse"))
    answered["headers"] = _refs("X-Request-Id", length)
    answered["content"][BYTES] = {
        "schema": BINARY | {"description": "JSON as InferResponse, then the binary outputs."}
    }
    return _operation(f"infer{named}", "Outputs for inputs", {200: answered}, BODY) | {
        "parameters": [
            _header_parameter(length, COUNT, "Bytes of the JSON, where binary tensors follow it."),
            _header_parameter("Content-Encoding", {"type": "string",
                              "enum": ["identity", "gzip", "x-gzip", "deflate"]}, "Of the body."),
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": ref("InferRequest")}} | binary,
        },
    }  # fmt: skip


def _classify(named: str) -> dict[str, Any]:
    top = {"type": "integer", "minimum": 1, "maximum": 10**9 - 1, "default": 5}
    form = {"type": "object", "properties": {"image": BINARY}, "required": ["image"]}
    return _operation(
        f"classify{named}", "Classes of an image", {200: _json(ref("Classified"))}, BODY
    ) | {
        "parameters": [
            {"name": "top", "in": "query", "schema": top, "description": "Classes wanted."}
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": {"schema": BINARY},
                "image/png": {"schema": BINARY},
                "multipart/form-data": {"schema": form},
            },
        },
    }


def _index() -> dict[str, Any]:
    return _operation(
        "index", "Every bundle, and why one does not serve", {200: _json(ref("Index"))}, (401,)
    ) | {"requestBody": {"required": False, "content": {JSON: {"schema": {}}},
                         "description": "Not read."}}  # fmt: skip


def _get(
    name: str, summary: str, answered: dict[str, Any], refused: tuple[int, ...] = ()
) -> dict[str, Any]:
    return {"get": _operation(name, summary, {200: answered}, refused)}


def _health(name: str, summary: str, schema: str) -> dict[str, Any]:
    not_so = _json({"anyOf": [ref(schema), ref("Error")]}, "It is not so, or nobody could ask.")
    return {"get": _operation(name, summary, {200: _json(ref(schema)), 503: not_so}, ())}


def _operation(
    name: str, summary: str, answered: dict[int, Any], refused: tuple[int, ...]
) -> dict[str, Any]:
    refusals = {
        status: {"$ref": f"#/components/responses/Refused{status}"}
        for status in (*ANYWHERE, *refused)
    }
    both = refusals | answered
    return {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): both[status] for status in sorted(both)},
    }


def _json(schema: Schema, words: str = "As asked for.") -> dict[str, Any]:
    return _ok(JSON, schema, words)


def _ok(kind: str, schema: Schema, words: str = "As asked for.") -> dict[str, Any]:
    return {
        "description": words,
        "headers": _refs("X-Request-Id"),
        "content": {kind: {"schema": schema}},
    }


def _refusal(status: int) -> dict[str, Any]:
    names = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}.get(status, ())
    return _json(ref("Error"), ERRORS[status]) | {"headers": _refs("X-Request-Id", *names)}


def _headers() -> dict[str, Any]:
    counted = "The sender's own, or one that the server made up; it is in the server's log."
    return {
        "X-Request-Id": {"schema": TEXT, "description": counted},
        "Retry-After": {"schema": COUNT, "description": "Seconds; absent where none would do."},
        "WWW-Authenticate": {"schema": {"const": "Bearer"}},
        "Inference-Header-Content-Length": {
            "schema": COUNT,
            "description": "Bytes of the JSON, where binary tensors follow it.",
        },
    }


def _refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": TEXT | {"minLength": 1}}


def _header_parameter(name: str, schema: Schema, words: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema, "description": words}
