"""What takes too long to be seen on a real connection: timers of a minute and more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from polarprune_deploy.serving.bounded_protocol import BoundedProtocol
from polarprune_deploy.serving.serve_options import Bounds

Send = Callable[[dict[str, Any]], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """Nobody at the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def _app(scope: Any, receive: Any, send: Send) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("idle", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_a_connection_that_brings_no_further_request_is_closed_in_the_end(idle: bytes) -> None:
    async def scenario() -> None:
        config = uvicorn.Config(
            _app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=0
        )
        config.load()
        protocol = BoundedProtocol(
            config=config, server_state=ServerState(), app_state={}, bounds=Bounds()
        )
        wire = Wire()
        protocol.connection_made(wire)
        protocol.data_received(GET)
        async with asyncio.timeout(10):
            while b"200 OK" not in wire.written:
                await asyncio.sleep(0)
            protocol.data_received(idle) if idle else None
            while not wire.closing:
                await asyncio.sleep(0.001)
        protocol.connection_lost(None)

    asyncio.run(scenario())
