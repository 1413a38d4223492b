"""Connections that are open, and still silent, when a server stops listening."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from polarprune_deploy.serving import server
from polarprune_deploy.serving.serve_options import ServeOptions

SECONDS = 20
REQUEST = b"GET /late HTTP/1.1\r\nHost: here\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers the path, and hangs up as a server does that leaves."""
    headers = [(b"content-length", b"%d" % len(scope["path"])), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def refused(port: int) -> None:
    """Wait until nobody is let in any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        writer.close()
        await asyncio.sleep(0.005)


def test_who_is_connected_is_answered_after_the_server_stopped_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LAST_WORDS_SECONDS", SECONDS)

    async def work() -> bytes:
        options = ServeOptions(Path(), http_port=0)
        service = server._http_server(app, 0, "--http-port", options)
        port = await service.__aenter__()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ending = asyncio.create_task(service.__aexit__(None, None, None))
        await refused(port)
        writer.write(REQUEST)
        answer = await reader.read()
        await ending
        writer.close()
        return answer

    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(asyncio.wait_for(work(), SECONDS))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"/late")
    assert time.monotonic() - began < SECONDS / 2, "who has had its answer is not waited for"


def test_who_has_knocked_is_let_in_before_the_server_stops_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LAST_WORDS_SECONDS", SECONDS)

    async def work() -> list[bytes]:
        options = ServeOptions(Path(), http_port=0)
        service = server._http_server(app, 0, "--http-port", options)
        port = await service.__aenter__()
        # The system shakes their hands; the server has had no turn yet in which to see them.
        knocking = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        ending = asyncio.create_task(service.__aexit__(None, None, None))
        answers = []
        for each in knocking:
            reader, writer = await asyncio.open_connection(sock=each)
            writer.write(REQUEST)
            answers.append(await reader.read())
            writer.close()
        await ending
        return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(asyncio.wait_for(work(), SECONDS))
    assert [answer[-5:] for answer in answers] == [b"/late"] * 20


def test_the_silent_are_not_waited_for_beyond_the_bound() -> None:
    async def work() -> bytes:
        options = ServeOptions(Path(), http_port=0)
        service = server._http_server(app, 0, "--http-port", options)
        reader, writer = await asyncio.open_connection("127.0.0.1", await service.__aenter__())
        await service.__aexit__(None, None, None)
        rest = await reader.read()
        writer.close()
        return rest

    assert asyncio.run(asyncio.wait_for(work(), SECONDS)) == b""
