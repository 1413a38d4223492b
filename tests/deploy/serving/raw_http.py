"""A client of HTTP/1.1 that sends any bytes whatever, and reads answers strictly."""

import socket
import time
from dataclasses import dataclass
from types import TracebackType

PATIENCE = 20.0
"""Seconds; a server that takes longer hangs."""
LONGEST_HEAD = 1 << 16


class Hung(AssertionError):
    """Neither an answer nor an end within the patience."""


@dataclass(frozen=True)
class Answer:
    """One whole answer.

    Attributes:
        headers: names in lower case.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class RawConnection:
    """One connection; bytes out, answers in."""

    def __init__(self, port: int, *, patience: float = PATIENCE, receive_buffer: int = 0) -> None:
        self._patience = patience
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.socket.close()

    def send(self, content: bytes) -> None:
        """All of it, or as much as the other side takes before it goes."""
        try:
            self.socket.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whatever was answered before can still be read
        except TimeoutError:
            raise Hung("the server does not read") from None

    def answer(self, method: str = "POST") -> Answer | None:
        """The next one; None where the connection ends before one begins.

        Raises:
            Hung: nothing comes.
            ValueError: what comes is no HTTP/1.1, or ends in the middle.
        """
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                return None
            status, headers = read_head(head)
            if status == 100:
                continue
            size = int(headers["content-length"])
            body = b"" if method == "HEAD" else self._exactly(size)
            return Answer(status, headers, body)

    def ended(self) -> bool:
        """Whether the other side closed, waiting for it; what it still sent is dropped."""
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if not self._more():
                return True
        raise Hung("the server does not close")

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._held:
            if len(self._held) > LONGEST_HEAD:
                raise ValueError("a head without end")
            if not self._more():
                if self._held:
                    raise ValueError(f"ended in a head: {self._held[:200]!r}")
                return None
        head, self._held = self._held.split(mark, 1)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            if not self._more():
                raise ValueError(f"{len(self._held)} bytes of a body of {size}")
        body, self._held = self._held[:size], self._held[size:]
        return body

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        except TimeoutError:
            raise Hung(f"nothing came for {self._patience} seconds") from None
        self._held += piece
        return bool(piece)


def read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer.

    Raises:
        ValueError: it is not what HTTP/1.1 says, or a name is there twice.
    """
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if version != "HTTP/1.1":
        raise ValueError(f"no HTTP/1.1: {first[:100]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise ValueError(f"a header that is none, or is there twice: {line[:100]!r}")
        headers[name.lower()] = value.strip()
    return int(status), headers


def request(
    path: str, body: bytes = b"", *, method: str = "POST", headers: dict[str, str] | None = None
) -> bytes:
    """The bytes of an ordinary request; a header that is given replaces the ordinary one."""
    whole = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in whole.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
