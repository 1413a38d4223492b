"""uvicorn's HTTP protocol with the bounds that it leaves open, and with errors in their turn.

Bounded are: the bytes and seconds of headers, of trailers and of what stands between the pieces of
a body; the seconds of a body; the requests that wait behind another on one connection; the seconds
in which an answer must be taken; the connections. Whoever sends more than is read gets to see the
answer before the connection ends.
"""

import asyncio
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polarprune_deploy.serving.serve_options import Bounds

PIPELINED = 64
"""Requests that may wait behind the one that is being answered."""
LINGER_SECONDS = 2.0
"""Of silence, until the rest of what is refused is not waited for any more. It is read and dropped:
a reset would take the answer along.
"""
LONGEST_LENGTH = 18
"""Digits of a content-length."""
SPARE_CONNECTIONS = 128
"""One too many lingers only while not so many do."""
BETWEEN, HEADERS, BODY = "between requests", "in headers", "in a body"
RESPONSE = (
    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
)


@dataclass(frozen=True)
class Refusal:
    """The last words on a connection."""

    status: str
    words: str
    headers: str = ""

    def encode(self) -> bytes:
        """In the form of every other error."""
        content = b'{"error": "%b"}' % self.words.encode()
        return RESPONSE % (self.status.encode(), self.headers.encode(), len(content), content)


NOT_HTTP = Refusal("400 Bad Request", "this is not HTTP/1.1")
OTHER_CODING = Refusal("400 Bad Request", "the only transfer-encoding that is read is chunked")
UPGRADE = Refusal("400 Bad Request", "a request with a body cannot ask for an upgrade")
TOO_MANY = Refusal("503 Service Unavailable", "too many connections", "retry-after: 1\r\n")
TOO_EAGER = Refusal(
    "503 Service Unavailable", "too many requests wait on this connection", "retry-after: 1\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, bounds: Bounds, **more: Any) -> None:
        """As uvicorn makes it, with bounds."""
        super().__init__(*args, **more)
        self._bounds = bounds
        self._reading = BETWEEN
        self._silent_bytes = 0
        """That came and brought neither whole headers nor a piece of a body."""
        self._brought = False
        self._refusal = NOT_HTTP
        """What a failure of the parser means."""
        self._last_words: bytes | None = None
        """Said once the requests before have their answers."""
        self._deaf = False
        """Whatever still comes is dropped."""
        self._running: Any = None
        self._stays = True
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse one too many at once."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._exit: Any = _Exit(transport, self._leave)
        self._start_timer(self._bounds.header_seconds)
        if len(self.connections) > self._bounds.connections:
            self._reading = HEADERS  # which are about to come, and are not read
            self._refuse(TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind, and tell the request that nobody waits for it."""
        self._stop_timer()
        self._stop_write_timer()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what brings nothing forward."""
        if self._deaf or self.transport.is_closing():
            self._brought = True
            return
        self._brought = False
        super().data_received(data)
        if self._deaf or self.transport.is_closing():
            return
        if self._reading != BETWEEN:
            self._silent_bytes = 0 if self._brought else self._silent_bytes + len(data)
            if self._silent_bytes > self._bounds.header_bytes:
                self._refuse(self._too_large())
            elif self._timer is None:
                bounds = self._bounds
                in_body = self._reading == BODY
                self._start_timer(bounds.body_seconds if in_body else bounds.header_seconds)
        elif self._timer is None and self.timeout_keep_alive_task is None and self._is_idle():
            # Empty lines: uvicorn has stopped its timer, and would wait for ever.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """Headers are next."""
        super().on_message_begin()
        self._reading, self._silent_bytes = HEADERS, 0

    def on_headers_complete(self) -> None:
        """Start the request, if its headers are in order; a failure is the parser's too."""
        self._brought = True
        size, has_body, is_short = len(self.url), False, True
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"transfer-encoding":
                has_body, is_short = True, False
                self._check(value.strip().lower() == b"chunked", OTHER_CODING)
            elif name == b"content-length":
                has_body = value.strip(b"0") != b""
                is_short = len(value) <= LONGEST_LENGTH and int(value) <= self._bounds.body_bytes
        self._check(size <= self._bounds.header_bytes, self._too_large())
        upgrade = self.parser.should_upgrade()
        # The parser takes what follows for another protocol's: it would be lost, or a request.
        self._check(not (upgrade and has_body), UPGRADE)
        self._check(len(self.pipeline) < PIPELINED, TOO_EAGER)
        super().on_headers_complete()
        self._stop_timer()
        self._reading = BODY
        self.headers = []  # trailers are none of the request's
        self.cycle.transport = self._exit
        self._stays = self.cycle.keep_alive and not upgrade
        # What an answer does not wait for is read and dropped, if it is short and sure to come;
        # else that answer is the connection's last.
        self.cycle.keep_alive = self._stays and is_short and not self.expect_100_continue

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._brought = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._brought = True
        self._stop_timer()
        self._reading = BETWEEN
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._stays
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request's turn, or that of the last words."""
        if self._deaf and self._last_words is None:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._last_words is not None and self._is_idle():
            self._say_last_words()

    def send_400_response(self, msg: str) -> None:
        """What the parser did not take."""
        self._refuse(self._refusal)

    def shutdown(self) -> None:
        """Answer what is there, then close."""
        self._stays = False
        super().shutdown()

    def pause_writing(self) -> None:
        """An answer is not taken; not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self._bounds.body_seconds, self.transport.abort
            )

    def resume_writing(self) -> None:
        """It is."""
        self._stop_write_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long."""
        if not self.transport.is_closing():
            self._leave()

    def _unsupported_upgrade_warning(self) -> None:
        self._deaf = True

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        running = self._running
        return not self.pipeline and (
            running is None or running.response_complete or running.disconnected
        )

    def _check(self, holds: bool, refusal: Refusal) -> None:
        if not holds:
            self._refusal = refusal
            raise ValueError(refusal.words)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is being read, which is wrong, when its turn comes; read nothing more."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        self._stop_timer()
        self._last_words = refusal.encode()
        broken = self.cycle if self._reading == BODY else None
        if broken is not None and self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()
        elif broken is not None:
            broken.disconnected = True
            broken.message_event.set()
            if broken.response_started:
                self._last_words = None
                self._leave()
                return
        if self._is_idle():
            self._say_last_words()

    def _say_last_words(self) -> None:
        if self._last_words is not None and not self.transport.is_closing():
            self.transport.write(self._last_words)
            self._last_words = None
            self._leave()

    def _leave(self) -> None:
        """Close; after a while for the sender to see the answer, where more may be on its way."""
        if self.transport.is_closing():
            return
        self._stop_timer()
        self._unset_keepalive_if_required()
        crowded = len(self.connections) > self._bounds.connections + SPARE_CONNECTIONS
        if (self._deaf or self._reading != BETWEEN) and not crowded:
            self._deaf = True
            self.transport.write_eof()
            FlowControl.resume_reading(self.flow)
            self._brought = False
            last = self.loop.time() + self._bounds.body_seconds
            self._timer = self.loop.call_later(LINGER_SECONDS, self._linger, last)
            return
        self._deaf = True
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._timer = self.loop.call_later(self._bounds.body_seconds, self.transport.abort)

    def _linger(self, last: float) -> None:
        if not self._brought or self.loop.time() >= last:
            self.transport.abort()
            return
        self._brought = False
        self._timer = self.loop.call_later(LINGER_SECONDS, self._linger, last)

    def _too_large(self) -> Refusal:
        limit = self._bounds.header_bytes
        return Refusal(
            "431 Request Header Fields Too Large",
            f"a request's line and headers may have {limit} bytes at most",
        )

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._give_up, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up(self, seconds: float) -> None:
        self._timer = None
        if self._reading == BETWEEN:
            self._leave()
        elif self.flow.read_paused:  # by us: not the sender's fault
            self._start_timer(seconds)
        else:
            part = "body" if self._reading == BODY else "headers"
            self._refuse(
                Refusal("408 Request Timeout", f"no whole {part} within {seconds:g} seconds")
            )


class _Flow(FlowControl):
    """Nothing more is read while requests wait."""

    def __init__(self, transport: Any, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class _Exit:
    """A connection as a request's answer sees it: it may end it, but not so that it gets lost."""

    def __init__(self, transport: Any, leave: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, leave
