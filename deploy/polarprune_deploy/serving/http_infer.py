"""The protocol's inference request and response over HTTP, with the binary tensor extension.

A body is JSON, then, `Inference-Header-Content-Length` bytes after its start, the raw bytes of the
binary inputs in their order. A length of 0 is a raw request: the whole body is the one input.
"""

import json
from dataclasses import dataclass
from typing import Any

from polarprune.files.strict_json import parse_strict
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.infer_requests import (
    NO_CLASSIFICATION,
    NO_SHARED_MEMORY,
    InferRequest,
    Signature,
    check_id,
    shown,
    timeout_seconds,
)
from polarprune_deploy.serving.request_errors import BAD, TOO_LARGE, RequestError
from polarprune_deploy.serving.serve_options import Bounds
from polarprune_deploy.serving.tensors import (
    DATATYPES,
    HALF_WITHOUT_JSON,
    from_list,
    from_raw,
    to_list,
    to_raw,
)

LENGTH_HEADER = b"inference-header-content-length"
MOST_LISTS, MOST_TEXTS = 100_000, 10_000
"""In one document; small ones take twenty times their bytes in memory."""
REMEMBERED_HEADS, LONGEST_REMEMBERED = 256, 2048
"""Heads, and bytes of one: a client sends the same before each tensor."""
UNKNOWN_LENGTH = "Inference-Header-Content-Length must be a whole number within the body, got"


@dataclass(frozen=True)
class AskedOutput:
    """One output as it was asked for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class HttpInferRequest:
    """A request and how its answer is to be written; no `asked` asks for all, `binary` or not."""

    request: InferRequest
    asked: tuple[AskedOutput, ...]
    binary: bool


@dataclass(frozen=True)
class PlannedInput:
    """One input as the JSON describes it: `data` where it is there, else `size` raw bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    data: Array | None


@dataclass(frozen=True)
class Plan:
    """All that the JSON of a request says."""

    inputs: tuple[PlannedInput, ...]
    id: str
    asked: tuple[AskedOutput, ...]
    names: tuple[str, ...]
    binary: bool
    timeout: float | None


def parse_infer(
    body: bytes, length_header: bytes | None, signature: Signature, bounds: Bounds
) -> HttpInferRequest:
    """The request in a body.

    Raises:
        RequestError: BAD or TOO_LARGE; what is wrong with it.
    """
    length = _header_length(length_header, len(body))
    if length == 0 and length_header is not None:
        return _raw_request(body, signature)
    if length > bounds.json_bytes:
        raise RequestError(
            TOO_LARGE, f"the JSON of a request may have {bounds.json_bytes} bytes at most; "
            "send tensors as binary data",
        )  # fmt: skip
    plan = _plan(body[:length], signature, bounds)
    raw, start, arrays = memoryview(body)[length:], 0, {}
    for planned in plan.inputs:
        if planned.data is not None:
            arrays[planned.name] = planned.data
            continue
        if planned.size > len(raw) - start:
            raise RequestError(
                BAD, f"binary_data_size of input {planned.name!r} must be within the "
                f"{len(raw) - start} bytes that are left, got {planned.size}",
            )  # fmt: skip
        piece = raw[start : start + planned.size]
        arrays[planned.name] = from_raw(piece, planned.datatype, planned.shape, planned.name)
        start += planned.size
    if start != len(raw):
        raise RequestError(BAD, f"{len(raw) - start} bytes follow that belong to no input")
    ordered, rows = signature.complete(arrays)
    request = InferRequest(ordered, rows, plan.id, plan.names, plan.timeout)
    return HttpInferRequest(request, plan.asked, plan.binary)


def encode_response(
    asked: HttpInferRequest, outputs: dict[str, Array], name: str, version: str,
    signature: Signature,
) -> tuple[bytes, int | None]:  # fmt: skip
    """The response's body, and the length of its JSON where binary data follows.

    Raises:
        RequestError: an output that JSON cannot say was asked for in JSON.
    """
    wanted = {output.name: output.binary for output in asked.asked}
    described, blobs = [], []
    for spec in signature.outputs:
        if wanted and spec.name not in wanted:
            continue
        array, datatype = outputs[spec.name], DATATYPES[spec.dtype]
        tensor: dict[str, Any] = {
            "name": spec.name, "datatype": datatype, "shape": list(array.shape)
        }  # fmt: skip
        if wanted.get(spec.name, asked.binary):
            blob = to_raw(array, datatype)
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif datatype in HALF_WITHOUT_JSON:
            raise RequestError(
                BAD, f"output {spec.name!r} of {datatype} can only be sent as binary data"
            )
        else:
            tensor["data"] = to_list(array, spec.name)
        described.append(tensor)
    document = {"model_name": name, "model_version": version, "id": asked.request.id}
    if not asked.request.id:
        del document["id"]
    head = json.dumps({**document, "outputs": described}, separators=(",", ":"), allow_nan=False)
    content = head.encode()
    return (b"".join([content, *blobs]), len(content)) if blobs else (content, None)


def _header_length(header: bytes | None, size: int) -> int:
    if header is None:
        return size
    words = header.decode("latin-1").strip(" \t")
    if not (words.isascii() and words.isdigit()) or len(words) > 18 or int(words) > size:
        raise RequestError(BAD, f"{UNKNOWN_LENGTH} {shown(words)}")
    return int(words)


def _raw_request(body: bytes, signature: Signature) -> HttpInferRequest:
    if len(signature.inputs) != 1:
        raise RequestError(BAD, "a raw request is for models of one input")
    (spec,) = signature.inputs
    shape = (1, *spec.shape[1:])
    if any(side < 0 for side in shape):
        raise RequestError(BAD, f"a raw request needs fixed sides, {spec.name!r} has open ones")
    datatype = DATATYPES[spec.dtype]
    array = from_raw(body, datatype, shape, spec.name)
    return HttpInferRequest(InferRequest({spec.name: array}, 1), (), binary=True)


def _document(content: bytes, largest: int) -> dict[str, Any]:
    lists, quotes = content.count(b"[") + content.count(b"{"), content.count(b'"')
    if lists > MOST_LISTS or quotes > 2 * MOST_TEXTS:
        raise RequestError(
            TOO_LARGE, f"the JSON of a request may hold {MOST_LISTS} lists and {MOST_TEXTS} texts "
            "at most",
        )  # fmt: skip
    try:
        document = parse_strict(content, largest)
    except ValueError as error:  # of the encoding too
        raise RequestError(BAD, f"the request is not JSON: {shown(str(error))}") from None
    if not isinstance(document, dict):
        raise RequestError(BAD, "the request is no JSON object")
    return document


def _parameters(found: Any) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError(BAD, f"parameters must be an object, got {shown(found)}")
    return found


def _flag(parameters: dict[str, Any], name: str, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise RequestError(BAD, f"{name} must be true or false, got {shown(value)}")
    return value


def _plan(head: bytes, signature: Signature, bounds: Bounds) -> Plan:
    """What the JSON says; remembered, unless it holds data itself."""
    plan: Plan | None = signature.plans.get(head)
    if plan is not None:
        return plan
    document = _document(head, bounds.json_bytes)
    parameters = _parameters(document.get("parameters"))
    binary = _flag(parameters, "binary_data_output", False)
    asked = _asked(document.get("outputs"), binary)
    names = signature.check_outputs([output.name for output in asked])
    request_id = check_id(document.get("id", ""))
    timeout = timeout_seconds(parameters.get("timeout"))
    inputs = _planned_inputs(document.get("inputs"), signature)
    plan = Plan(inputs, request_id, asked, names, binary, timeout)
    if len(head) <= LONGEST_REMEMBERED and all(planned.data is None for planned in inputs):
        if len(signature.plans) >= REMEMBERED_HEADS:
            signature.plans.clear()
        signature.plans[head] = plan
    return plan


def _planned_inputs(found: Any, signature: Signature) -> tuple[PlannedInput, ...]:
    if not isinstance(found, list) or not found:
        raise RequestError(BAD, "inputs must be a list of at least one tensor")
    planned: dict[str, PlannedInput] = {}
    for tensor in found:
        if not isinstance(tensor, dict):
            raise RequestError(BAD, f"an input must be an object, got {shown(tensor)}")
        name, datatype, shape = signature.check_input(
            tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        )
        if name in planned:
            raise RequestError(BAD, f"input {name!r} is there twice")
        parameters = _parameters(tensor.get("parameters"))
        if "shared_memory_region" in parameters:
            raise RequestError(BAD, NO_SHARED_MEMORY)
        size, data = parameters.get("binary_data_size"), None
        if size is None:
            if "data" not in tensor:
                raise RequestError(BAD, f"input {name!r} has neither data nor binary_data_size")
            size, data = 0, from_list(tensor["data"], datatype, shape, name)
        elif "data" in tensor:
            raise RequestError(BAD, f"input {name!r} has both data and binary_data_size")
        elif type(size) is not int or size < 0:
            raise RequestError(
                BAD, f"binary_data_size of input {name!r} must be bytes, got {shown(size)}"
            )
        planned[name] = PlannedInput(name, datatype, shape, size, data)
    return tuple(planned.values())


def _asked(found: Any, binary: bool) -> tuple[AskedOutput, ...]:
    if found is None:
        return ()
    if not isinstance(found, list):
        raise RequestError(BAD, f"outputs must be a list, got {shown(found)}")
    asked = []
    for output in found:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise RequestError(BAD, f"an output must be an object with a name, got {shown(output)}")
        parameters = _parameters(output.get("parameters"))
        if parameters.get("classification"):
            raise RequestError(BAD, NO_CLASSIFICATION)
        if "shared_memory_region" in parameters:
            raise RequestError(BAD, NO_SHARED_MEMORY)
        asked.append(AskedOutput(output["name"], _flag(parameters, "binary_data", binary)))
    return tuple(asked)
