"""Senders that are slow, silent, gone or many, against a real server with short bounds.

Whatever they do, good clients are served meanwhile, with the right numbers and in time.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.serving.hostile_server import (
    INFER,
    LENGTH,
    SHORT_BOUNDS,
    TOKEN,
    HostileServer,
    answer_on,
    binary_body,
    check_kind,
    wait_until,
)
from tests.deploy.serving.raw_http import request
from tests.deploy.serving.served_bundle import some_images

IMAGES = some_images(5, 3)
BODY, JSON_BYTES = binary_body(IMAGES)
HEADER_SECONDS, BODY_SECONDS = SHORT_BOUNDS["header_seconds"], SHORT_BOUNDS["body_seconds"]
CONNECTIONS = SHORT_BOUNDS["connections"]
GRACE = 5.0
"""Seconds that a busy machine may add."""
SOON = 5.0
"""Seconds within which a good client is served, however many bad ones there are."""
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(autouse=True)
def _well_afterwards(strict_server: HostileServer) -> Iterator[None]:
    yield
    # Those of the test are gone when a new one is let in.
    wait_until(lambda: _is_let_in(strict_server))
    strict_server.check_well()


def _is_let_in(server: HostileServer) -> bool:
    answer = server.send(GET + b"\r\n")
    return answer is not None and answer.status == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET", GET, GET + b"X: "])
def test_headers_that_do_not_come_end_the_connection(
    strict_server: HostileServer, sent: bytes
) -> None:
    with strict_server.connect() as connection:
        connection.send(sent)
        start = time.monotonic()
        answer = connection.answer()
        assert connection.ended()
        assert HEADER_SECONDS * 0.9 < time.monotonic() - start < HEADER_SECONDS + GRACE
        if sent.strip():
            assert answer is not None
            assert answer.status == 408
            check_kind(answer)


def test_headers_that_drip_end_the_connection_no_later(strict_server: HostileServer) -> None:
    start = time.monotonic()
    with strict_server.connect() as connection:
        connection.send(GET)
        for _ in range(200):  # far longer than it may last
            connection.send(b"X: y\r\n")
            connection.socket.settimeout(0.05)
            try:
                ended = connection.socket.recv(4096) != b""
            except TimeoutError:
                continue
            except ConnectionResetError:
                ended = True
            if ended:
                break
        assert HEADER_SECONDS * 0.9 < time.monotonic() - start < HEADER_SECONDS + GRACE


@pytest.mark.parametrize(
    "lines",
    [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"],
    ids=["whole", "chunked"],
)
def test_a_body_that_does_not_come_is_answered_with_408(
    strict_server: HostileServer, lines: str
) -> None:
    start = time.monotonic()
    with strict_server.connect() as connection:
        head = f"POST {INFER} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n{lines}\r\n\r\n"
        connection.send(head.encode() + (b"" if "chunked" in lines else BODY[:-1]))
        answer = answer_on(connection)
        assert answer.status == 408
        assert connection.ended()
    assert BODY_SECONDS * 0.9 < time.monotonic() - start < BODY_SECONDS + GRACE


def test_a_body_that_an_answer_did_not_wait_for_is_read_and_dropped(
    strict_server: HostileServer,
) -> None:
    hidden = strict_server.good_request(IMAGES)
    for path, token, status in (("/nowhere", TOKEN, 404), (INFER, "wrong", 401),
                                ("/v2/models/other/infer", TOKEN, 404)):  # fmt: skip
        headers = {"Authorization": f"Bearer {token}"}
        raw = request(path, hidden, headers=headers)
        with strict_server.connect() as connection:
            connection.send(raw[: -len(hidden)])
            answer = answer_on(connection)
            assert answer.status == status
            connection.send(hidden + strict_server.good_request(IMAGES))
            strict_server.check_logits(IMAGES, connection.answer())
            if status == 401:
                connection.send(raw[:-1])
                refused = connection.answer()
                assert refused is not None
                assert refused.status == status
                assert connection.ended()  # after the time of a body
        with strict_server.connect() as connection:
            chunked = headers | {"Transfer-Encoding": "chunked", "Content-Length": "-"}
            raw = request(path, b"5\r\nabcde\r\n", headers=chunked)
            connection.send(raw.replace(b"Content-Length: -\r\n", b""))
            answer = answer_on(connection)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert connection.ended()


def test_who_waits_to_be_asked_for_the_body_is_asked_only_if_it_is_wanted(
    strict_server: HostileServer,
) -> None:
    expecting = {"Expect": "100-continue"}
    raw = strict_server.good_request(IMAGES, expecting)
    with strict_server.connect() as connection:
        connection.send(raw[: -len(BODY)])
        head = connection.socket.recv(4096)
        assert head == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(raw[-len(BODY) :])
        strict_server.check_logits(IMAGES, connection.answer())
    refused = {
        401: strict_server.good_request(IMAGES, expecting | {"Authorization": "Bearer no"}),
        404: strict_server.good_request(IMAGES, expecting).replace(b"small", b"other"),
        413: strict_server.good_request(IMAGES, expecting | {"Content-Length": "9999999"}),
    }
    for status, raw in refused.items():
        with strict_server.connect() as connection:
            connection.send(raw[: -len(BODY)])
            answer = answer_on(connection)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
    unknown = strict_server.send(strict_server.good_request(IMAGES, {"Expect": "200-ok"}))
    strict_server.check_logits(IMAGES, unknown)


def test_who_goes_in_the_middle_costs_nobody_anything(strict_server: HostileServer) -> None:
    whole = strict_server.good_request(IMAGES)
    for cut in (1, 20, 100, len(whole) - len(BODY), len(whole) - 1, len(whole)):
        for linger in (False, True):
            with strict_server.connect() as connection:
                connection.send(whole[:cut])
                if linger:  # closed in one direction alone
                    connection.socket.shutdown(1)
                    assert connection.ended()
    strict_server.check_well()


def test_an_idle_connection_that_sends_empty_lines_is_not_kept_for_ever(
    strict_server: HostileServer,
) -> None:
    with strict_server.connect() as connection:
        connection.send(GET + b"\r\n")
        assert connection.answer() is not None
        connection.send(b"\r\n\r\n")
        connection.send(b"GET /v2/h")  # and then half a request
        answer = answer_on(connection)
        assert answer.status == 408
        assert connection.ended()


def test_who_does_not_take_the_answers_is_cut_off(strict_server: HostileServer) -> None:
    raw = request("/status", method="GET", headers=strict_server.authorization)
    with strict_server.connect(receive_buffer=4096) as connection:
        connection.socket.settimeout(0.5)
        start = time.monotonic()
        cut_off = False
        while not cut_off and time.monotonic() - start < 60:
            try:
                connection.socket.sendall(raw * 50)
            except TimeoutError:
                continue  # the server reads no more, since its answers are not taken
            except (BrokenPipeError, ConnectionResetError):
                cut_off = True
        assert cut_off
    strict_server.check_well()


def test_one_connection_too_many_is_refused_at_once_and_the_others_are_unharmed(
    strict_server: HostileServer,
) -> None:
    good = strict_server.good_request(IMAGES)
    with ExitStack() as stack:
        held = [stack.enter_context(strict_server.connect()) for _ in range(CONNECTIONS)]
        for connection in held:
            connection.send(good)
        for connection in held:
            strict_server.check_logits(IMAGES, connection.answer())
        for _ in range(10):
            start = time.monotonic()
            with strict_server.connect() as late:
                late.send(good)
                answer = late.answer()
                assert answer is not None
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1
                check_kind(answer)
            assert time.monotonic() - start < SOON
        for connection in held:
            connection.send(good)
            strict_server.check_logits(IMAGES, connection.answer())
        held.pop().socket.close()
        wait_until(lambda: _is_let_in(strict_server))


def test_good_clients_are_served_in_time_beside_many_half_open_ones(
    strict_server: HostileServer,
) -> None:
    parts = (b"", b"GET /", GET, strict_server.good_request(IMAGES)[:-1])
    stop = threading.Event()

    def half_open() -> None:
        """Open and leave half-open, again and again, one connection short of the bound."""
        while not stop.is_set():
            with ExitStack() as stack:
                for number in range(CONNECTIONS - 6):
                    connection = stack.enter_context(strict_server.connect())
                    connection.send(parts[number % len(parts)])
                stop.wait(0.3)

    attacker = threading.Thread(target=half_open)
    attacker.start()
    try:
        with strict_server.connect() as connection:
            for seed in range(100):
                images = some_images(seed, 1 + seed % 8)
                start = time.monotonic()
                connection.send(strict_server.good_request(images))
                strict_server.check_logits(images, connection.answer())
                assert time.monotonic() - start < SOON
    finally:
        stop.set()
        attacker.join()


def test_bodies_together_are_bounded_and_promised_bytes_hold_nothing(
    strict_server: HostileServer,
) -> None:
    most = SHORT_BOUNDS["body_bytes"]
    head = request(INFER, headers=strict_server.authorization | {"Content-Length": str(most)})
    with ExitStack() as stack:
        for _ in range(8):  # promise together more than there is room for
            stack.enter_context(strict_server.connect()).send(head + b"\0" * 1000)
        strict_server.check_well()
    with ExitStack() as stack:
        senders = [stack.enter_context(strict_server.connect()) for _ in range(8)]
        for sender in senders:
            sender.send(head + b"\0" * (most - 1))
        answers = [sender.answer() for sender in senders]
        statuses = sorted(answer.status for answer in answers if answer is not None)
        assert set(statuses) == {408, 503}, statuses  # those that had room waited for the last byte
        assert len(statuses) == 8


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer x{TOKEN}",
     f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", f"Basic {TOKEN}", f"Token {TOKEN}",
     TOKEN, f"Bearer{TOKEN}", f"Bearer\t{TOKEN}", "Bearer \xff\xfe", f'Bearer "{TOKEN}"',
     "Bearer " + "x" * 9999, f"Bearer {TOKEN}\xa0", f"Bearer {TOKEN[:8]}\x80{TOKEN[8:]}"],
    ids=lambda given: ascii(given)[:40],
)  # fmt: skip
def test_nothing_but_the_token_lets_a_request_in(
    strict_server: HostileServer, given: str | None
) -> None:
    headers = {LENGTH: str(JSON_BYTES)} | ({} if given is None else {"Authorization": "GIVEN"})
    for raw in (request(INFER, BODY, headers=headers),
                request("/v2/models/small", method="GET", headers=headers),
                request("/nowhere", method="GET", headers=headers)):  # fmt: skip
        answer = strict_server.answered(raw.replace(b"GIVEN", (given or "").encode("latin-1")))
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in json.loads(answer.body)["error"]


def test_the_token_lets_in_whatever_the_case_of_its_scheme(strict_server: HostileServer) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        raw = strict_server.good_request(IMAGES, {"Authorization": f"{scheme} {TOKEN}"})
        strict_server.check_logits(IMAGES, strict_server.send(raw))


def test_two_tokens_are_one_too_many(strict_server: HostileServer) -> None:
    raw = strict_server.good_request(IMAGES)
    for other in (TOKEN, "wrong"):
        line = f"Authorization: Bearer {other}\r\nHost: ".encode()
        answer = strict_server.answered(raw.replace(b"Host: ", line))
        assert answer.status == 400


def test_health_and_the_page_need_no_token_under_their_own_names_alone(
    strict_server: HostileServer,
) -> None:
    for path, status in (("/", 200), ("/v2/health/live", 200), ("/v2/health/ready", 200),
                         ("/?x=/v2", 200), ("//", 401), ("/v2/health/live/", 401),
                         ("/v2/health/live/../../models/small", 401), ("/v2/health", 401),
                         ("/v2/health/live%2f..", 404)):  # fmt: skip
        answer = strict_server.answered(request(path, method="GET"))
        assert answer.status == status, path
