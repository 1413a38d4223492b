"""A request's body: received whole, within bounds of bytes and time, and decompressed."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from polarprune_deploy.serving.infer_requests import shown
from polarprune_deploy.serving.request_errors import (
    BAD,
    CANCELED,
    REJECTED,
    SLOW,
    TOO_LARGE,
    UNSUPPORTED,
    RequestError,
)
from polarprune_deploy.serving.serve_options import Bounds

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]

WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class Held:
    """The bytes of all bodies that are in memory."""

    def __init__(self, bounds: Bounds) -> None:
        """Nothing is held yet."""
        self._bounds = bounds
        self.nbytes = 0

    @contextmanager
    def room(self) -> Iterator["Room"]:
        """Room for one body, given back at the end."""
        room = Room(self)
        try:
            yield room
        finally:
            self.nbytes -= room.nbytes

    def take(self, nbytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            RequestError: that would be more than all may hold together.
        """
        if self.nbytes + nbytes > self._bounds.total_bytes:
            raise RequestError(REJECTED, "too many bytes are being received", 1)
        self.nbytes += nbytes


class Room:
    """What one body holds."""

    def __init__(self, held: Held) -> None:
        """Nothing is held yet."""
        self._held, self.nbytes = held, 0

    def grow(self, nbytes: int) -> None:
        """Hold so many bytes more, or raise."""
        self._held.take(nbytes)
        self.nbytes += nbytes


async def read_body(headers: Headers, receive: Receive, room: Room, bounds: Bounds) -> bytes:
    """The whole body, decompressed.

    Raises:
        RequestError: TOO_LARGE, SLOW, BAD or UNSUPPORTED; CANCELED where the sender went.
    """
    stated = headers.get(b"content-length")
    if stated is not None and stated.isdigit():
        if len(stated) > 18 or int(stated) > bounds.body_bytes:
            raise too_large(bounds)
        room.grow(int(stated))
    message = await _within(bounds, receive)
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


async def _within(bounds: Bounds, receive: Receive) -> MutableMapping[str, Any]:
    try:
        async with asyncio.timeout(bounds.body_seconds):
            message = await receive()
    except TimeoutError:
        raise RequestError(
            SLOW, f"the body did not come within {bounds.body_seconds:g} seconds"
        ) from None
    if message["type"] == "http.disconnect":
        raise RequestError(CANCELED, "the sender went before its request was whole")
    return message


async def _rest(first: bytes, receive: Receive, room: Room, bounds: Bounds, grow: bool) -> bytes:
    pieces, size = [first], len(first)
    if grow:
        room.grow(size)
    try:
        async with asyncio.timeout(bounds.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(CANCELED, "the sender went before its request was whole")
                piece = message["body"]
                size += len(piece)
                if size > bounds.body_bytes:
                    raise too_large(bounds)
                if grow:
                    room.grow(len(piece))
                pieces.append(piece)
                if not message["more_body"]:
                    return b"".join(pieces)
    except TimeoutError:
        raise RequestError(
            SLOW, f"the body did not come within {bounds.body_seconds:g} seconds"
        ) from None


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
