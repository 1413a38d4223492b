"""What the real process does when it is told to look again, and to leave."""

import http.client
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.served import Served
from tests.small_bundles import CLASSES, SIDE, write_small_bundle

LAME_DUCK_SECONDS = 1.5
BODY = (
    f'{{"inputs": [{{"name": "input", "datatype": "FP32", "shape": [1, 3, {SIDE}, {SIDE}], '
    f'"data": {[0.5] * (3 * SIDE * SIDE)}}}]}}'
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    write_small_bundle(tmp_path / "served" / "small")
    with Served(tmp_path / "served", "--lame-duck-seconds", f"{LAME_DUCK_SECONDS}") as process:
        process.wait_ready()
        yield process


def ask(connection: http.client.HTTPConnection, path: str, body: str) -> tuple[int, str | None]:
    """Status, and what the answer says of the connection."""
    connection.request("POST" if body else "GET", path, body or None)
    answer = connection.getresponse()
    content = answer.read()
    if body and answer.status == 200:
        assert content.count(b",") >= CLASSES - 1
    return answer.status, answer.getheader("connection")


def test_connections_are_kept_until_the_server_leaves_and_each_then_ends_with_its_answer(
    server: Served,
) -> None:
    port, infer, ready = server.ports["http"], "/v2/models/small/infer", "/v2/health/ready"
    with (
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client,
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as prober,
    ):
        for _ in range(2):
            assert ask(client, infer, BODY) == (200, None)
            assert ask(prober, ready, "") == (200, None)
        server.signal(signal.SIGTERM)
        end = time.monotonic() + LAME_DUCK_SECONDS
        while not server.events("draining"):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert ask(client, infer, BODY) == (200, "close")
        assert ask(prober, ready, "") == (503, "close")
    assert server.wait(20) == 0


def test_sighup_tries_again_what_could_not_be_loaded(server: Served, tmp_path: Path) -> None:
    broken = write_small_bundle(tmp_path / "served" / "broken")
    (broken / "model.onnx").write_bytes(b"")
    for times in (1, 2):
        server.signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while len(server.events("loading")) < 1 + times or len(failures(server)) < times:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert server.index()[0]["state"] == "UNAVAILABLE"
    assert server.stop() == 0


def failures(server: Served) -> list[str]:
    return [e["message"] for e in server.events() if e["message"].startswith("not loaded")]
