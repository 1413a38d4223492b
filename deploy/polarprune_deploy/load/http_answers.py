"""HTTP/1.1 answers out of the pieces in which a socket hands them over.

An answer that comes whole and says its length, as nearly all do, costs a few searches in its head.
"""

from functools import lru_cache
from typing import NamedTuple

from polarprune.errors import quote

_HEAD_END = b"\r\n\r\n"
LARGEST_HEAD = 1 << 16
LARGEST_BODY = 1 << 30


class GarbledAnswer(Exception):
    """What came is no answer in HTTP/1.1; the message says why."""


class HttpAnswer(NamedTuple):
    """One answer.

    Attributes:
        json_length: of the JSON in front of binary tensors, bytes; None where all of it is JSON.
        last: the server closes the connection behind it.
    """

    status: int
    body: bytes
    json_length: int | None
    last: bool


class _Head(NamedTuple):
    status: int
    length: int | None
    chunked: bool
    json_length: int | None
    last: bool


class AnswerReader:
    """Reads one answer after the other of one connection."""

    def __init__(self) -> None:
        self._head: _Head | None = None
        self._held = bytearray()
        self._chunks = _Chunks()

    def feed(self, data: bytes) -> HttpAnswer | None:
        """The answer that these bytes complete; None where there is more to come.

        Raises:
            GarbledAnswer: they are no part of one.
        """
        head = self._head
        if head is None:
            if self._held:
                data = bytes(self._held) + data
                self._held.clear()
            end = data.find(_HEAD_END)
            if end < 0:
                self._hold_head(data)
                return None
            head = _read_head(data[:end])
            data = data[end + 4 :]
            if 100 <= head.status < 200:
                return self.feed(data)
            if head.length == len(data) and not head.chunked:
                return HttpAnswer(head.status, data, head.json_length, head.last)
            self._head = head
        return self._body(head, data)

    def end(self) -> HttpAnswer:
        """The answer that the end of the connection completes: a body that said no length.

        Raises:
            GarbledAnswer: it ended midway.
        """
        head = self._head
        if head is None or head.chunked or head.length is not None:
            raise GarbledAnswer("the connection was closed before the answer was whole")
        return self._finish(head, bytes(self._held))

    def _hold_head(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise GarbledAnswer(f"no HTTP: {quote(data[:40])}")
        if len(data) > LARGEST_HEAD:
            raise GarbledAnswer(f"a head of more than {LARGEST_HEAD} bytes")
        self._held += data

    def _body(self, head: _Head, data: bytes) -> HttpAnswer | None:
        if head.chunked:
            body = self._chunks.feed(data)
            return None if body is None else self._finish(head, body)
        self._held += data
        if len(self._held) > (LARGEST_BODY if head.length is None else head.length):
            raise GarbledAnswer("more bytes than the answer's length, or than a GiB")
        if head.length is None or len(self._held) < head.length:
            return None
        return self._finish(head, bytes(self._held))

    def _finish(self, head: _Head, body: bytes) -> HttpAnswer:
        self._head, self._chunks = None, _Chunks()
        self._held.clear()
        return HttpAnswer(head.status, body, head.json_length, head.last)


class _Chunks:
    """A body in chunks, each behind its length; the trailer is dropped."""

    def __init__(self) -> None:
        self._left = bytearray()
        self._parts: list[bytes] = []
        self._size = 0
        self._trailer = False

    def feed(self, data: bytes) -> bytes | None:
        self._left += data
        while True:
            end = self._left.find(b"\r\n")
            if end < 0:
                if len(self._left) > LARGEST_HEAD:
                    raise GarbledAnswer("a chunk without a length")
                return None
            if self._trailer:
                del self._left[: end + 2]
                if end == 0:
                    return self._whole()
                continue
            size = _number(bytes(self._left[:end]).split(b";")[0], 16, "a chunk's length")
            if size == 0:
                self._trailer = True
                del self._left[: end + 2]
                continue
            self._size_allowed(size)
            if len(self._left) < end + 2 + size + 2:
                return None
            self._take(end + 2, size)

    def _size_allowed(self, size: int) -> None:
        if self._size + size > LARGEST_BODY:
            raise GarbledAnswer("an answer of more than a GiB")

    def _take(self, start: int, size: int) -> None:
        stop = start + size
        if self._left[stop : stop + 2] != b"\r\n":
            raise GarbledAnswer("a chunk of another length than it says")
        self._parts.append(bytes(self._left[start:stop]))
        self._size += size
        del self._left[: stop + 2]

    def _whole(self) -> bytes:
        if self._left:
            raise GarbledAnswer("more bytes than the answer's chunks")
        return b"".join(self._parts)


@lru_cache(maxsize=64)  # a server's heads differ in the date at most, and that by seconds
def _read_head(head: bytes) -> _Head:
    status = head[9:12]
    if not head.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
        raise GarbledAnswer(f"no HTTP: {quote(head[:40])}")
    lowered = head.lower()
    length = _field(lowered, b"\r\ncontent-length:")
    json_length = _field(lowered, b"\r\ninference-header-content-length:")
    connection = _field(lowered, b"\r\nconnection:")
    coding = _field(lowered, b"\r\ntransfer-encoding:")
    old = head[7:8] == b"0" and connection != b"keep-alive"
    code = int(status)
    chunked = coding is not None and coding.endswith(b"chunked")
    announced = 0 if code in (204, 304) else None
    if length is not None and not chunked:
        announced = _number(length, 10, "Content-Length")
        if announced > LARGEST_BODY:
            raise GarbledAnswer("an answer of more than a GiB")
    return _Head(
        status=code,
        length=announced,
        chunked=chunked,
        json_length=None if json_length is None else _number(json_length, 10, "the JSON's length"),
        last=old or connection == b"close" or (announced is None and not chunked),
    )


def _field(head: bytes, name: bytes) -> bytes | None:
    start = head.find(name)
    if start < 0:
        return None
    start += len(name)
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


def _number(text: bytes, base: int, what: str) -> int:
    digits = text.strip()
    if not digits.isalnum():  # int() takes signs, spaces and underscores
        raise GarbledAnswer(f"{what} is {quote(text)}")
    try:
        return int(digits, base)
    except ValueError:
        raise GarbledAnswer(f"{what} is {quote(text)}") from None
