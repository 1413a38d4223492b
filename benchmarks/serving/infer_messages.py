"""Requests as bytes, in all the forms in which the protocol lets one say the same."""

import gzip
import json
from typing import Any

from benchmarks.serving.known_answers import Case

CHUNK = 10_000
LENGTH = "Inference-Header-Content-Length"


def http_message(
    path: str, body: bytes = b"", *fields: str, verb: str = "POST", length: int | None = None
) -> bytes:
    """Head and body; `length` is what the head says where that is not the truth."""
    stated = len(body) if length is None else length
    lines = [f"{verb} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {stated}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked_message(path: str, body: bytes, *fields: str) -> bytes:
    """The same without a length: the body comes in chunks."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Transfer-Encoding: chunked", *fields]
    pieces = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join([*lines, "", ""]).encode() + chunks + b"0\r\n\r\n"


def json_body(case: Case, name: str) -> bytes:
    """Numbers in JSON; the answer comes in JSON."""
    return _dump(
        {"id": case.id, "inputs": [{**_head(case, name), "data": case.images.ravel().tolist()}]}
    )


def binary_parts(case: Case, name: str, **changes: Any) -> tuple[bytes, bytes]:
    """JSON and raw bytes; the answer comes in binary.

    Args:
        changes: of what the JSON says of the input.
    """
    raw = case.images.astype("<f4").tobytes()
    described = {**_head(case, name), "parameters": {"binary_data_size": len(raw)}, **changes}
    document = {
        "id": case.id, "parameters": {"binary_data_output": True}, "inputs": [described],
    }  # fmt: skip
    return _dump(document), raw


def binary_message(case: Case, name: str, path: str, **changes: Any) -> bytes:
    """The usual request of a client that cares for speed."""
    head, raw = binary_parts(case, name, **changes)
    return http_message(path, head + raw, f"{LENGTH}: {len(head)}")


def gzip_message(case: Case, name: str, path: str, *, as_json: bool) -> bytes:
    """Compressed."""
    if as_json:
        body = gzip.compress(json_body(case, name), 1)
        return http_message(path, body, "Content-Encoding: gzip")
    head, raw = binary_parts(case, name)
    body = gzip.compress(head + raw, 1)
    return http_message(path, body, "Content-Encoding: gzip", f"{LENGTH}: {len(head)}")


def _head(case: Case, name: str) -> dict[str, Any]:
    return {"name": name, "shape": list(case.images.shape), "datatype": "FP32"}


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
