"""The description of the HTTP side: complete, in the form that tools read, and true."""

import io
import json
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from starlette.routing import Route

from polarprune_deploy.serving.http_routes import make_routes
from polarprune_deploy.serving.openapi import openapi_document
from polarprune_deploy.serving.repository import Repository
from tests.deploy.serving.hostile_server import LENGTH, HostileServer, binary_body, json_body
from tests.deploy.serving.raw_http import Answer, request
from tests.deploy.serving.served_bundle import some_images

DOCUMENT = openapi_document()
IMAGES = some_images(0, 2)
VERBS = ("get", "post")
NOT_DESCRIBED = {"date", "content-length", "content-type", "connection"}
"""Of HTTP itself."""
OF_A_PAGE = {"content-security-policy", "cache-control", "cross-origin-opener-policy",
             "referrer-policy", "x-content-type-options", "permissions-policy",
             "x-frame-options", "cross-origin-resource-policy"}  # fmt: skip


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in DOCUMENT["paths"].items():
        for verb in VERBS:
            if verb in found:
                yield path, verb, found[verb]


def resolved(found: dict[str, Any]) -> dict[str, Any]:
    """What a reference means; itself where it is none."""
    if "$ref" not in found:
        return found
    value: Any = DOCUMENT
    for part in found["$ref"].removeprefix("#/").split("/"):
        value = value[part]
    return cast(dict[str, Any], value)


def references(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def check_described(answer: Answer | None, path: str, verb: str) -> None:
    """The answer's status, kind, headers and JSON are those of the description."""
    assert answer is not None
    responses = DOCUMENT["paths"][path][verb]["responses"]
    assert str(answer.status) in responses, (path, answer)
    response = resolved(responses[str(answer.status)])
    kind = answer.headers["content-type"]
    assert kind in response["content"], (path, answer)
    names = {name.lower() for name in response.get("headers", {})}
    assert set(answer.headers) - NOT_DESCRIBED - OF_A_PAGE <= names, (path, answer)
    schema = response["content"][kind]["schema"]
    if kind == "application/json":
        validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
        validator.validate(json.loads(answer.body))


def test_every_route_is_described_and_no_other() -> None:
    routes = cast(list[Route], make_routes(cast(Repository, None)).routes)
    served = {
        (route.path, method.lower())
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    for verb in ("infer", "classify"):  # told apart before the others
        served |= {(f"/v2/models/{{model}}{versions}/{verb}", "post")
                   for versions in ("", "/versions/{version}")}  # fmt: skip
    assert {(path, verb) for path, verb, _ in operations()} == served


def test_the_description_has_the_form_that_openapi_asks_for() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["title"]
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    for reference in references(DOCUMENT):
        assert set(reference) == {"$ref"}
        resolved(reference)
    for path, _, operation in operations():
        parameters = DOCUMENT["paths"][path].get("parameters", []) + operation.get("parameters", [])
        in_path = {f"{{{p['name']}}}" for p in parameters if p["in"] == "path" and p["required"]}
        assert in_path == {part for part in path.split("/") if part.startswith("{")}
        for status, response in operation["responses"].items():
            assert status.isdigit()
            assert resolved(response)["description"]
            assert all("schema" in kind for kind in resolved(response)["content"].values())
        for header in (h for r in operation["responses"].values()
                       for h in resolved(r).get("headers", {}).values()):  # fmt: skip
            assert "schema" in resolved(header)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_description_is_served(server: HostileServer) -> None:
    answer = server.answered(request("/openapi.json", method="GET"))
    assert json.loads(answer.body) == DOCUMENT


def test_every_question_is_answered_as_described(server: HostileServer) -> None:
    for path, verb, operation in operations():
        if verb == "get" or "requestBody" not in operation:
            for model, version in (("small", "1"), ("other", "1"), ("small", "9")):
                real = path.replace("{model}", model).replace("{version}", version)
                check_described(server.send(request(real, method=verb.upper())), path, verb)
    index = "/v2/repository/index"
    for body in (b"", b"{}", b"\0"):
        check_described(server.send(request(index, body)), index, "post")


@pytest.mark.parametrize("versions", ["", "/versions/{version}"])
def test_inference_is_answered_as_described(server: HostileServer, versions: str) -> None:
    path = f"/v2/models/{{model}}{versions}/infer"
    real = path.replace("{model}", "small").replace("{version}", "1")
    body, length = binary_body(IMAGES)
    for raw, status in (
        (request(real, json_body(IMAGES)), 200),
        (request(real, body, headers={LENGTH: str(length)}), 200),
        (request(real, body), 400),
        (request(real.replace("small", "other"), body), 404),
        (request(real, headers={"Content-Length": str(1 << 40)}), 413),
        (request(real, body, headers={"Content-Encoding": "br"}), 415),
        (request(real, body, headers={"X": "y" * 50_000}), 431),
        (request(real, json_body(IMAGES)[:-1] + b', "parameters": {"timeout": 1}}'), 503),
    ):
        answer = server.answered(raw)
        assert answer.status == status
        check_described(answer, path, "post")
    answer = server.answered(request(real, body, headers={LENGTH: str(length)}))
    said = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    schema = {"$ref": "#/components/schemas/InferResponse", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(said)


@pytest.mark.parametrize("versions", ["", "/versions/{version}"])
def test_classification_is_answered_as_described(server: HostileServer, versions: str) -> None:
    path = f"/v2/models/{{model}}{versions}/classify"
    real = path.replace("{model}", "small").replace("{version}", "1")
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    form = (b"--b\r\nContent-Disposition: form-data; name=image; filename=x.png\r\n\r\n"
            + file.getvalue() + b"\r\n--b--\r\n")  # fmt: skip
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    for raw, status in (
        (request(real, file.getvalue()), 200),
        (request(f"{real}?top=1", file.getvalue()), 200),
        (request(real, form, headers=multipart), 200),
        (request(f"{real}?top=0", file.getvalue()), 400),
        (request(real, file.getvalue()[:-30]), 400),
        (request(real.replace("small", "other"), file.getvalue()), 404),
        (request(real, b"GIF89a"), 415),
    ):
        answer = server.answered(raw)
        assert answer.status == status, answer
        check_described(answer, path, "post")


def test_requests_in_order_fit_the_description_and_others_do_not() -> None:
    schema = {"$ref": "#/components/schemas/InferRequest", "components": DOCUMENT["components"]}
    validator = Draft202012Validator(schema)
    document = json.loads(json_body(IMAGES))
    assert validator.is_valid(document)
    assert validator.is_valid({**document, "id": "a", "parameters": {"timeout": 5}})
    (tensor,) = document["inputs"]
    for wrong in ({}, {"inputs": []}, {"inputs": [{**tensor, "shape": [0]}]},
                  {"inputs": [{**tensor, "datatype": "BYTES"}]}, {**document, "id": "x" * 257},
                  {"inputs": [{**tensor, "data": ["1"]}]},
                  {**document, "parameters": {"binary_data_output": 1}}):  # fmt: skip
        assert not validator.is_valid(wrong), wrong


def test_who_brings_no_token_is_refused_as_described(strict_server: HostileServer) -> None:
    for path, verb, operation in operations():
        real = path.replace("{model}", "small").replace("{version}", "1")
        answer = strict_server.answered(request(real, method=verb.upper()))
        assert (answer.status == 401) == ("401" in operation["responses"])
        check_described(answer, path, verb)
