"""A request's body: received whole, within bounds of bytes, and decompressed.

The bounds of time are the connection's (`bounded_protocol`).
"""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from polarprune_deploy.serving.held_bytes import Room
from polarprune_deploy.serving.infer_requests import shown
from polarprune_deploy.serving.request_errors import (
    BAD,
    CANCELED,
    TOO_LARGE,
    UNSUPPORTED,
    RequestError,
)
from polarprune_deploy.serving.serve_options import Bounds

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]

WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


async def read_body(headers: Headers, receive: Receive, room: Room, bounds: Bounds) -> bytes:
    """The whole body, decompressed.

    Raises:
        RequestError: TOO_LARGE, BAD or UNSUPPORTED; CANCELED where the sender went.
    """
    stated = headers.get(b"content-length")
    if stated is not None and stated.isdigit():
        if len(stated) > 18 or int(stated) > bounds.body_bytes:
            raise too_large(bounds)
        room.grow(int(stated))
    message = await _next(receive)
    body: bytes = message["body"]
    if message["more_body"]:
        body = await _rest(body, receive, room, bounds, stated is None)
    elif stated is None:
        room.grow(len(body))
    if len(body) > bounds.body_bytes:
        raise too_large(bounds)
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding in (b"identity", b""):
        return body
    return _decompressed(body, coding, room, bounds)


def too_large(bounds: Bounds) -> RequestError:
    """The refusal of a body beyond the bound."""
    return RequestError(TOO_LARGE, f"the body may have {bounds.body_bytes} bytes at most")


async def _next(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestError(CANCELED, "the sender went before its request was whole")
    return message


async def _rest(first: bytes, receive: Receive, room: Room, bounds: Bounds, grow: bool) -> bytes:
    pieces, size = [first], len(first)
    if grow:
        room.grow(size)
    while True:
        message = await _next(receive)
        piece = message["body"]
        size += len(piece)
        if size > bounds.body_bytes:
            raise too_large(bounds)
        if grow:
            room.grow(len(piece))
        pieces.append(piece)
        if not message["more_body"]:
            return b"".join(pieces)


def _decompressed(body: bytes, coding: bytes, room: Room, bounds: Bounds) -> bytes:
    if coding not in WINDOW_BITS:
        raise RequestError(
            UNSUPPORTED,
            f"content-encoding {shown(coding.decode('latin-1'))} is not gzip or deflate",
        )
    inflate = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        content = inflate.decompress(body, bounds.body_bytes + 1)
    except zlib.error:
        raise RequestError(BAD, f"the body is not {coding.decode()}") from None
    if len(content) > bounds.body_bytes:
        raise too_large(bounds)
    if not inflate.eof or inflate.unused_data:
        raise RequestError(BAD, f"the body is not one whole {coding.decode()} stream")
    room.grow(len(content))
    return content
