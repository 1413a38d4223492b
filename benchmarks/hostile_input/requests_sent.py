"""A request as the client means it, and as bytes."""

from dataclasses import dataclass, replace
from typing import Any

Header = tuple[bytes, bytes]
LENGTH = b"Inference-Header-Content-Length"


@dataclass(frozen=True)
class Sent:
    """One request.

    Attributes:
        kind: what was done to it, for the record.
        headers: beside those of the framing.
        chunks: sizes of the chunks that the body is cut into, over and over; none for a whole one.
        stated: what Content-Length says; None says the truth.
        raw: sent instead of all that, where not even the head is one.
        alone: on a connection of its own, whose end the server is told.
    """

    kind: str
    path: bytes
    body: bytes
    headers: tuple[Header, ...] = ()
    method: bytes = b"POST"
    chunks: tuple[int, ...] = ()
    stated: bytes | None = None
    raw: bytes | None = None
    alone: bool = False

    @property
    def read(self) -> bytes:
        """As much of the body as belongs to the request."""
        return self.body if self.stated is None else self.body[: int(self.stated)]

    def changed(self, kind: str, **changes: Any) -> "Sent":
        """Another one."""
        return replace(self, kind=kind, **changes)

    def encode(self) -> bytes:
        """As it goes over the wire."""
        if self.raw is not None:
            return self.raw
        lines = [b"%b: %b\r\n" % header for header in self.headers]
        if self.chunks:
            lines.append(b"Transfer-Encoding: chunked\r\n")
            body = self._chunked()
        else:
            stated = b"%d" % len(self.body) if self.stated is None else self.stated
            lines.append(b"Content-Length: %b\r\n" % stated)
            body = self.body
        head = b"%b %b HTTP/1.1\r\nHost: localhost\r\n" % (self.method, self.path)
        return head + b"".join(lines) + b"\r\n" + body

    def _chunked(self) -> bytes:
        pieces, start, turn = [], 0, 0
        while start < len(self.body):
            piece = self.body[start : start + self.chunks[turn % len(self.chunks)]]
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            start, turn = start + len(piece), turn + 1
        return b"".join(pieces) + b"0\r\n\r\n"


def read_sent(raw: bytes, kind: str) -> Sent | None:
    """What a head may mean, by its lines alone; None where it means nothing that is known here."""
    head, mark, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    words = first.split()
    if not mark or len(words) != 3:
        return None
    headers = [tuple(line.split(b":", 1)) for line in lines]
    if any(len(header) != 2 for header in headers):
        return None
    known = {name.lower(): value.strip(b" \t") for name, value in headers}
    stated = known.get(b"content-length", b"0")
    read = body[: int(stated)] if stated.isdigit() else body
    return Sent(kind, words[1], read, tuple(known.items()), words[0])
