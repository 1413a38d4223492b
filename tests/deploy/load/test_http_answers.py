"""Answers in pieces, against the standard library's own reader of HTTP."""

import http.client
import io
import itertools
import random

import pytest

from polarprune_deploy.load.http_answers import AnswerReader, GarbledAnswer, HttpAnswer

BODY = bytes(range(256)) * 3
ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-LENGTH: 768\r\nX: y\r\n\r\n" + BODY,
    "binary": b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 12\r\ncontent-length: 768"
    b"\r\n\r\n" + BODY,
    "chunks": b"HTTP/1.1 503 Full\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\n\x00\r\n2FE;name=value\r\n" + BODY[1:767] + b"\r\n1\r\n\xff\r\n0\r\nTrailer: x\r\n\r\n",
    "nothing": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 None\r\nServer: x\r\n\r\n",
    "continued": b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
    "until the end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY,
    "old": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
}


class _Bytes(io.BytesIO):
    def makefile(self, *_: object) -> "_Bytes":
        return self


def read_by_the_library(answer: bytes) -> tuple[int, bytes, bool]:
    response = http.client.HTTPResponse(_Bytes(answer), method="POST")  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read(), response.will_close


def read_in_pieces(answer: bytes, cuts: list[int]) -> HttpAnswer:
    reader = AnswerReader()
    edges = [0, *sorted(cuts), len(answer)]
    for start, stop in itertools.pairwise(edges):
        found = reader.feed(answer[start:stop]) if stop > start else None
        if found is not None:
            assert stop == len(answer)
            return found
    return reader.end()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_the_same_wherever_it_is_cut(name: str) -> None:
    answer = ANSWERS[name]
    expected = read_by_the_library(answer)
    generator = random.Random(0)
    cuts = [[cut] for cut in range(len(answer))]
    cuts += [generator.choices(range(len(answer)), k=5) for _ in range(200)]
    for some in [[], *cuts]:
        found = read_in_pieces(answer, some)
        assert (found.status, found.body, found.last) == expected
        assert found.json_length == (12 if name == "binary" else None)


def test_one_answer_after_the_other_is_read_on_one_connection() -> None:
    reader = AnswerReader()
    for name in ("length", "chunks", "nothing", "binary"):
        answer = ANSWERS[name]
        assert reader.feed(answer[:50]) is None or name == "nothing"
        if name != "nothing":
            found = reader.feed(answer[50:])
            assert found is not None
            assert found.body == BODY


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP: b'SSH-2.0"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length is b'-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", "Content-Length is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "more than a GiB"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "more bytes than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\na", "more bytes than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "a chunk's length is"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "of another length"),
        (b"HTTP/1.1 " + b"x" * 70_000, "a head of more than 65536 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: x\r\nContent-Length: 0\r\n\r\n",
            "the JSON's length is b'x'",
        ),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(answer: bytes, words: str) -> None:
    with pytest.raises(GarbledAnswer, match=words.replace("(", r"\(")):
        AnswerReader().feed(answer)


@pytest.mark.parametrize("name", ["length", "chunks", "continued"])
def test_an_answer_that_ends_midway_is_none(name: str) -> None:
    for cut in range(len(ANSWERS[name])):
        reader = AnswerReader()
        reader.feed(ANSWERS[name][:cut])
        with pytest.raises(GarbledAnswer, match="closed before the answer was whole"):
            reader.end()
