"""A request's body: received whole, within bounds of bytes, and decompressed.

The bounds of time are the connection's (`bounded_protocol`).
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
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
SAID_ONCE = (b"authorization", b"content-encoding", b"inference-header-content-length")
LONGEST_LENGTH = 18
"""Digits of a content-length."""
STEP = 1 << 18
"""Bytes that are decompressed, and compressed ones that are looked at, before others' turn."""


def refuse_contradictions(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse what is said twice of the body or the sender: others may go by the other one.

    Raises:
        RequestError: BAD.
    """
    names = [name for name, _ in headers]
    for name in SAID_ONCE:
        if names.count(name) > 1:
            raise RequestError(BAD, f"the header {name.decode()} is there twice")


async def read_body(headers: Headers, receive: Receive, room: Room, bounds: Bounds) -> bytes:
    """The whole body, decompressed.

    Raises:
        RequestError: TOO_LARGE, BAD or UNSUPPORTED; CANCELED where the sender went.
    """
    stated = headers.get(b"content-length")
    if stated is not None and (len(stated) > LONGEST_LENGTH or int(stated) > bounds.body_bytes):
        raise too_large(bounds)
    coding = headers.get(b"content-encoding", b"identity").strip().lower() or b"identity"
    if coding != b"identity" and coding not in WINDOW_BITS:
        words = shown(coding.decode("latin-1"))
        raise RequestError(UNSUPPORTED, f"content-encoding {words} is not gzip or deflate")
    message = await _next(receive)
    body: bytes = message["body"]
    room.grow(len(body))  # what is there, not what is promised: a promise holds no memory
    if message["more_body"]:
        body = await _rest(body, receive, room, bounds)
    if len(body) > bounds.body_bytes:
        raise too_large(bounds)
    return body if coding == b"identity" else await _decompressed(body, coding, room, bounds)


def too_large(bounds: Bounds) -> RequestError:
    """The refusal of a body beyond the bound."""
    return RequestError(TOO_LARGE, f"the body may have {bounds.body_bytes} bytes at most")


async def _next(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestError(CANCELED, "the sender went before its request was whole")
    return message


async def _rest(first: bytes, receive: Receive, room: Room, bounds: Bounds) -> bytes:
    pieces, size = [first], len(first)
    while True:
        message = await _next(receive)
        piece = message["body"]
        size += len(piece)
        if size > bounds.body_bytes:
            raise too_large(bounds)
        room.grow(len(piece))
        pieces.append(piece)
        if not message["more_body"]:
            return b"".join(pieces)


async def _decompressed(body: bytes, coding: bytes, room: Room, bounds: Bounds) -> bytes:
    """One whole stream, a step at a time, so that a bomb holds up nobody else."""
    inflate = zlib.decompressobj(WINDOW_BITS[coding])
    waiting, fed = memoryview(body), b""
    pieces: list[bytes] = []
    size = 0
    while not inflate.eof:
        if not fed:
            fed, waiting = bytes(waiting[:STEP]), waiting[STEP:]
        ended = not fed
        try:
            piece = inflate.decompress(fed, STEP)
        except zlib.error:
            raise RequestError(BAD, f"the body is not {coding.decode()}") from None
        fed = inflate.unconsumed_tail
        if ended and not piece:
            break
        size += len(piece)
        if size > bounds.body_bytes:
            raise too_large(bounds)
        room.grow(len(piece))
        pieces.append(piece)
        if len(pieces) > 1:
            await asyncio.sleep(0)
    if not inflate.eof or inflate.unused_data or fed or waiting:
        raise RequestError(BAD, f"the body is not one whole {coding.decode()} stream")
    return b"".join(pieces)
