"""What is no request, or one that must not be understood twice, against a real server.

Every answer is 2xx, 4xx or 503; whatever else lies on the connection is neither lost nor taken for
a request; and the server answers a good request with the right numbers afterwards.
"""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from tests.deploy.serving.hostile_server import (
    INFER,
    LENGTH,
    HostileServer,
    answer_on,
    binary_body,
    check_kind,
    json_body,
)
from tests.deploy.serving.raw_http import Answer, RawConnection, request
from tests.deploy.serving.served_bundle import some_images

IMAGES = some_images(4, 2)
PATH = INFER.encode()
GET = b"GET /v2 HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(autouse=True)
def _well_afterwards(server: HostileServer) -> Iterator[None]:
    yield
    server.check_well()


def chunked(body: bytes, *, size: int = 100, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """A body in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces)
    return chunks + b"0\r\n" + trailer + b"\r\n"


def chunked_request(body: bytes, lines: bytes = b"Transfer-Encoding: chunked\r\n") -> bytes:
    """A request whose body is given as it goes over the wire."""
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n%b" % (PATH, lines, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n\0",
        b"garbage\r\n\r\n",
        bytes(range(256)),
        b"\xff" * 100_000,
        bytes.fromhex("16030100c2010000be0303") + bytes(180),  # the start of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),  # the start of HTTP/2
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x05\x01\x00",  # SOCKS
        b"GET /v2 HTTP/3.0\r\n\r\n",
        b"GET /v2 HTTP/1.1 HTTP/1.1\r\n\r\n",
        b"get /v2 HTTP/1.1\r\n\r\n",
        b"BREW /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2\0 HTTP/1.1\r\n\r\n",
        b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v2/models/ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        b"GET /v2 HTTP/1.1\nHost: a\n\n",
        GET + b"X : a\r\n\r\n",
        GET + b": a\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b"X: a\r\n folded\r\n\r\n",
        GET + b"no colon\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=lambda raw: ascii(raw)[:30],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(
    server: HostileServer, raw: bytes
) -> None:
    with server.connect() as connection:
        connection.send(raw)
        answer = answer_on(connection)
        assert answer.status in (400, 404)
        assert answer.headers["connection"] == "close"
        assert connection.ended()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v2\r\n\r\n",  # HTTP/0.9
        b"GET  /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.0\r\n\r\n",
        b"\r\n\r\nGET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_nearly_a_request_is_answered_or_refused(server: HostileServer, raw: bytes) -> None:
    answer = server.answered(raw)
    assert answer.status in (200, 400)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"abcdef"),
        (b"Content-Length: 5, 5\r\n", b"abcde"),
        (b"Content-Length: +5\r\n", b"abcde"),
        (b"Content-Length: -5\r\n", b"abcde"),
        (b"Content-Length: 0x5\r\n", b"abcde"),
        (b"Content-Length: 5 5\r\n", b"abcde"),
        (b"Content-Length: " + b"9" * 30 + b"\r\n", b"abcde"),
        (b"Content-Length : 5\r\n", b"abcde"),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: identity\r\n", b"abcde"),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"g\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-1\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"0x3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabcd\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\nabc\n0\n\n"),
        (b"Transfer-Encoding: chunked\r\n", b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"\r\nabc\r\n0\r\n\r\n"),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", b"abcde"),
        (b"Connection: Upgrade\r\nUpgrade: a\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ],
    ids=lambda part: ascii(part)[:40],
)
def test_a_body_whose_end_can_be_seen_in_two_ways_ends_the_connection(
    server: HostileServer, lines: bytes, body: bytes
) -> None:
    with server.connect() as connection:
        connection.send(chunked_request(body, lines) + GET + b"\r\n")
        answer = answer_on(connection)
        assert answer.status == 400
        assert connection.answer() is None, "what follows was taken for a request"


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_a_body_in_chunks_gives_the_same_numbers(server: HostileServer, size: int) -> None:
    body, length = binary_body(IMAGES)
    lines = f"Transfer-Encoding: Chunked\r\n{LENGTH}: {length}\r\n".encode()
    trailer = b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 3\r\nX: y\r\n"
    for wire in (
        chunked(body, size=size),
        chunked(body, size=size, extension=b";a=b"),
        chunked(body, size=size, trailer=trailer),  # which are not headers
    ):
        server.check_logits(IMAGES, server.send(chunked_request(wire, lines)))


def test_trailers_and_chunk_extensions_without_end_are_cut_off(server: HostileServer) -> None:
    for start, more in (
        (b"0\r\n", b"X: " + b"y" * 60 + b"\r\n"),
        (b"0\r\nX: ", b"y" * 64),
        (b"5;", b"a" * 64),
        (b"", b"0" * 64),
    ):
        before = server.resident_bytes()
        with server.connect() as connection:
            connection.send(chunked_request(start) + more * 500_000)
            answer = connection.answer()
            assert answer is None or answer.status in (400, 431)
            assert connection.ended()
        assert server.resident_bytes() - before < 20 << 20


def test_headers_without_end_are_cut_off(server: HostileServer) -> None:
    for start, more in (
        (GET, b"X-Name: value\r\n"),
        (GET + b"X: ", b"a" * 15),
        (GET, b"a" * 15),
        (b"GET /", b"a" * 15),
        (b"GET /?", b"a" * 15),
    ):
        before = server.resident_bytes()
        with server.connect() as connection:
            connection.send(start + more * 1_000_000)
            answer = answer_on(connection)
            assert answer.status == 431
            assert connection.ended()
        assert server.resident_bytes() - before < 20 << 20


@pytest.mark.parametrize(
    "lines", [b"X: " + b"a" * 40_000 + b"\r\n", b"X: y\r\n" * 8000, b"X" * 40_000 + b": y\r\n"]
)
def test_headers_that_are_whole_and_too_large_are_refused(
    server: HostileServer, lines: bytes
) -> None:
    answer = server.answered(GET + lines + b"\r\n")
    assert answer.status == 431


def test_headers_within_the_bound_are_read_however_many(server: HostileServer) -> None:
    more = {f"X-{number}": "y" for number in range(2500)}
    server.check_logits(IMAGES, server.send(server.good_request(IMAGES, more)))


def test_pipelined_requests_get_their_own_answers_in_order(server: HostileServer) -> None:
    sent = [some_images(seed, 1 + seed % 8) for seed in range(60)]
    with server.connect() as connection:
        connection.send(b"".join(map(server.good_request, sent)))
        for images in sent:
            server.check_logits(images, connection.answer())


def test_requests_before_garbage_get_their_answers_and_those_behind_it_none(
    server: HostileServer,
) -> None:
    good = server.good_request(IMAGES)
    wrong = request(INFER, b"{}")
    for garbage in (b"garbage\r\n\r\n", chunked_request(b"zz\r\n"), GET + b"X" * 50_000):
        with server.connect() as connection:
            connection.send(good + wrong + good + garbage + good)
            server.check_logits(IMAGES, connection.answer())
            statuses = []
            answer = answer_on(connection)
            assert answer.status == 400
            server.check_logits(IMAGES, connection.answer())
            while (answer := connection.answer()) is not None:
                check_kind(answer)
                statuses.append(answer.status)
            assert statuses in ([400], [431])


def test_requests_without_end_on_one_connection_take_no_memory(server: HostileServer) -> None:
    before = server.resident_bytes()
    with server.connect() as connection:
        connection.send((GET + b"\r\n") * 200_000)
        statuses = set()
        while (answer := connection.answer()) is not None:
            check_kind(answer)
            statuses.add(answer.status)
    assert statuses == {200, 503}
    assert server.resident_bytes() - before < 30 << 20


def test_a_request_that_ends_the_connection_is_its_last(server: HostileServer) -> None:
    good = server.good_request(IMAGES)
    with server.connect() as connection:
        connection.send(server.good_request(IMAGES, {"Connection": "close"}) + good)
        server.check_logits(IMAGES, connection.answer())
        assert connection.answer() is None
    with server.connect() as connection:
        connection.send(good.replace(b"HTTP/1.1", b"HTTP/1.0") + good)
        server.check_logits(IMAGES, connection.answer())
        assert connection.answer() is None


def test_an_upgrade_without_a_body_is_answered_as_if_none_was_asked_for(
    server: HostileServer,
) -> None:
    for words in (b"websocket", b"h2c", b"TLS/1.0"):
        with server.connect() as connection:
            connection.send(
                GET + b"Connection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Key: eA==\r\n"
                b"Sec-WebSocket-Version: 13\r\n\r\n%b\r\n" % (words, GET)
            )
            answer = answer_on(connection)
            assert answer.status == 200
            assert json.loads(answer.body)["name"] == "polarprune"
            assert connection.answer() is None


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "GET"])
def test_other_methods_are_told_which_are_taken(server: HostileServer, method: str) -> None:
    for path, allowed in ((INFER, {"POST"}), (INFER.replace("infer", "classify"), {"POST"}),
                          ("/v2/repository/index", {"POST"})):  # fmt: skip
        answer = server.answered(request(path, method=method), method)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
    if method not in ("HEAD", "GET"):
        answer = server.answered(request("/v2", method=method))
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "//v2",
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/../infer",
        "/v2/models/../../../etc/passwd",
        "/v2/models/small/versions/../infer",
        "/v2/models/small/versions/1/2/infer",
        "/v2/models/small%00/infer",
        "/v2/models/small%2finfer",
        "/v2/models//infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/%zz%/infer",
        "/v2/models/SMALL/infer",
        "/v2/models/small/versions/01/infer",
        "/v2/models/small/versions/-1/infer",
        "/v2/models/small/versions//infer",
        "/v2/models/small/Infer",
        "/v2/models/small/infer/",
        "/v2/models/small;a=b/infer",
        "/v2/models/" + "a" * 30_000 + "/infer",
        "/" * 30_000,
        "/static/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "file:///etc/passwd",
        "/v2/repository/models/small/delete",
        "*",
    ],
    ids=lambda path: path[:40],
)
def test_a_path_that_names_nothing_is_unknown(server: HostileServer, path: str) -> None:
    for method in ("POST", "GET"):
        answer = server.answered(request(path, json_body(IMAGES), method=method), method)
        assert answer.status in (400, 404) or (answer.status, method) == (405, "GET"), answer
        assert b"root:" not in answer.body


@pytest.mark.parametrize(
    "target",
    [
        f"http://elsewhere:1{INFER}",
        f"https://elsewhere{INFER}?a=b",
        f"{INFER}?a=%00&b",
        f"{INFER}#part",
        "/v2/models/%73mall/infer",
        "/v2/models/small/versions/1/infer",
    ],
)
def test_other_spellings_of_the_same_path_give_the_same_numbers(
    server: HostileServer, target: str
) -> None:
    raw = server.good_request(IMAGES).replace(PATH, target.encode())
    server.check_logits(IMAGES, server.send(raw))


def test_what_a_sender_calls_its_request_comes_back_only_if_a_header_can_hold_it(
    server: HostileServer,
) -> None:
    for sent, echoed in (("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("", False),
                         ("\xe9", False), ("a\tb", False)):  # fmt: skip
        raw = request("/v2", method="GET", headers={"X-Request-Id": "NAME"})
        answer = server.answered(raw.replace(b"NAME", sent.encode("latin-1")))
        assert (answer.headers["x-request-id"] == sent) == echoed


def test_a_body_where_none_belongs_is_not_taken_for_a_request(server: HostileServer) -> None:
    hidden = GET + b"\r\n"
    for path in ("/v2", "/v2/health/ready", "/metrics", "/nowhere"):
        with server.connect() as connection:
            connection.send(request(path, hidden * 3, method="GET"))
            answer = answer_on(connection)
            assert answer.status in (200, 404)
            connection.send(server.good_request(IMAGES))
            later = connection.answer()  # or the end, where the body was not waited for
            if later is not None:
                server.check_logits(IMAGES, later)


def test_the_port_of_the_metrics_serves_nothing_else(server: HostileServer) -> None:
    def ask(raw: bytes) -> Answer:
        with RawConnection(server.ports["metrics"]) as connection:
            connection.send(raw)
            return answer_on(connection)

    for raw in (request(INFER, b"x"), GET + b"\r\n", request("/metrics", method="PUT"),
                request("/metrics/", method="GET"), b"\0\0\r\n\r\n",
                request("/metrics", headers={"Content-Length": str(1 << 60)})):  # fmt: skip
        assert ask(raw).status in (400, 404, 405)
    assert b"nv_inference_request_success" in ask(request("/metrics", method="GET")).body


def test_noise_in_place_of_any_part_of_a_request_never_breaks_the_server(
    server: HostileServer,
) -> None:
    generator = np.random.default_rng(7)
    good = server.good_request(IMAGES)
    for _ in range(300):
        raw = bytearray(good)
        start = generator.integers(0, 250)
        noise = generator.bytes(generator.integers(1, 20))
        raw[start : start + len(noise)] = noise
        with server.connect() as connection:
            connection.send(bytes(raw))
            connection.socket.shutdown(1)  # or it would wait for the rest of a longer body
            answer = connection.answer()
            if answer is not None:
                check_kind(answer)
