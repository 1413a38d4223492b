"""uvicorn's HTTP protocol with bounds on headers and connections, which it leaves open."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polarprune_deploy.serving.serve_options import Bounds

RESPONSE = (
    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection; headers must come whole, small and soon, bodies within their time."""

    def __init__(self, *args: Any, bounds: Bounds, **more: Any) -> None:
        """As uvicorn makes it, with bounds."""
        super().__init__(*args, **more)
        self._bounds = bounds
        self._header_bytes = 0
        self._in_headers, self._in_body = True, False
        self._too_large = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse one too many at once."""
        super().connection_made(transport)
        self._expect_headers()
        if len(self.connections) > self._bounds.connections:
            self._answer(b"503 Service Unavailable", "too many connections", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before headers are whole."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_body:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(self._bounds.body_seconds, self._give_up)
        elif self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > self._bounds.header_bytes and not self.transport.is_closing():
                self._too_large = True
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """Headers are next."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Start the request, if its headers are small enough."""
        self._stop_timer()
        self._in_headers = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._bounds.header_bytes:
            self._too_large = True
            raise ValueError("headers too large")  # which the parser turns into its own error
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """In the form of every other error."""
        if self._too_large:
            limit = self._bounds.header_bytes
            words = f"a request's line and headers may have {limit} bytes at most"
            self._answer(b"431 Request Header Fields Too Large", words)
        else:
            self._answer(b"400 Bad Request", "this is not HTTP/1.1")

    def _answer(self, status: bytes, words: str, headers: bytes = b"") -> None:
        if not self.transport.is_closing():
            content = b'{"error":"%b"}' % words.encode()
            self.transport.write(RESPONSE % (status, headers, len(content), content))
            self.transport.close()

    def _expect_headers(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        if self._timer is None:
            self._timer = self.loop.call_later(self._bounds.header_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._in_body and not self.cycle.response_started:
            seconds = self._bounds.body_seconds
            self._answer(b"408 Request Timeout", f"no whole body within {seconds:g} seconds")
        else:
            self.transport.close()
