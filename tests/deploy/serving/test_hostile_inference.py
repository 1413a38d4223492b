"""Inference requests that are wrong in every way, against a real server.

Each must be refused with 4xx in one line of words, and leave a server that answers a good request
with the numbers of ONNX Runtime itself.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.deploy.serving.hostile_server import INFER, LENGTH, HostileServer, binary_body, json_body
from tests.deploy.serving.raw_http import request
from tests.deploy.serving.served_bundle import BODY_MB, MODEL, MOST, some_images

IMAGES = some_images(3, 2)
BODY, JSON_BYTES = binary_body(IMAGES)
VALUES = IMAGES[:1].reshape(-1).tolist()
ONE = [1, 3, 8, 8]
BOUND = BODY_MB << 20
"""Bytes of a body."""


@pytest.fixture(autouse=True)
def _well_afterwards(server: HostileServer) -> Iterator[None]:
    yield
    server.check_well()


def described(**changes: Any) -> dict[str, Any]:
    """One input as JSON describes it, with changes; None takes a key away."""
    tensor = {"name": "input", "datatype": "FP32", "shape": ONE, "data": VALUES, **changes}
    return {key: value for key, value in tensor.items() if value is not None}


def asked(*inputs: Any, **more: Any) -> bytes:
    """A request in JSON."""
    return json.dumps({"inputs": list(inputs), **more}).encode()


@pytest.mark.parametrize(
    "length",
    ["", "abc", "-1", "+5", "1.0", "1e2", "0x10", "1 2", "1,2", "1_0", "٣", "²", "\xa05",
     "99999999", "9" * 19, "9" * 5000, str(JSON_BYTES - 1), str(JSON_BYTES + 1), str(len(BODY)),
     "0", "000"],
    ids=lambda words: ascii(words)[:20],
)  # fmt: skip
def test_a_length_of_the_json_that_is_none_is_refused(server: HostileServer, length: str) -> None:
    raw = request(INFER, BODY, headers={LENGTH: "LENGTH"})
    answer = server.answered(raw.replace(b"LENGTH", length.encode()))
    assert answer.status == 400


def test_a_length_may_have_zeros_before_it_and_spaces_around(server: HostileServer) -> None:
    for length in (f"000{JSON_BYTES}", f"  {JSON_BYTES}\t"):
        server.check_logits(IMAGES, server.send(request(INFER, BODY, headers={LENGTH: length})))


@pytest.mark.parametrize("name", [LENGTH, "Content-Encoding"])
def test_a_header_that_says_two_things_of_the_body_is_refused(
    server: HostileServer, name: str
) -> None:
    first, second = (str(JSON_BYTES), "10") if name == LENGTH else ("identity", "gzip")
    lines = f"{name}: {first}\r\n{name.lower()}: {second}\r\nContent-Length: ".encode()
    raw = request(INFER, BODY, headers={} if name == LENGTH else {LENGTH: str(JSON_BYTES)})
    answer = server.answered(raw.replace(b"Content-Length: ", lines, 1))
    assert answer.status == 400
    assert b"twice" in answer.body


@pytest.mark.parametrize(
    "size",
    [0, 1, IMAGES.nbytes - 1, IMAGES.nbytes + 1, -1, -IMAGES.nbytes, 2**31, 2**62, True, False,
     float(IMAGES.nbytes), 1.5, str(IMAGES.nbytes), [IMAGES.nbytes], {}],
    ids=str,
)  # fmt: skip
def test_a_binary_size_that_is_not_that_of_the_shape_is_refused(
    server: HostileServer, size: Any
) -> None:
    body, length = binary_body(IMAGES, parameters={"binary_data_size": size})
    server.refuse(body, {LENGTH: str(length)})


def test_bytes_that_are_missing_or_belong_to_no_input_are_refused(server: HostileServer) -> None:
    for body in (BODY[:-1], BODY[:JSON_BYTES], BODY + b"\0", BODY + BODY):
        server.refuse(body, {LENGTH: str(JSON_BYTES)})
    for wrong in (IMAGES.nbytes - 4, IMAGES.nbytes + 4):
        assert server.refuse(b"\0" * wrong, {LENGTH: "0"}).startswith("400")


@pytest.mark.parametrize(
    "shape",
    [[], [1], [0, 3, 8, 8], [-1, 3, 8, 8], [1, 3, 8], [1, 3, 8, 8, 1], [1, 3, 8, 9], [1, 8, 8, 3],
     [1, 192], [2, 3, 8, 8], [1.0, 3, 8, 8], [True, 3, 8, 8], ["1", 3, 8, 8], [None, 3, 8, 8],
     [[1], 3, 8, 8], [[1, 3, 8, 8]], [2**31, 3, 8, 8], [2**62, 2**62, 2, 2], [MOST + 1, 3, 8, 8],
     [1] * 100_000, "1388", 1388, {"0": 1}, True, None],
    ids=lambda shape: str(shape)[:24],
)  # fmt: skip
def test_a_shape_that_the_model_does_not_take_is_refused(server: HostileServer, shape: Any) -> None:
    tensor = described(shape=shape, data=VALUES)
    assert server.refuse(asked(tensor)).startswith("400")
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": 768}
    head = asked(tensor)
    assert server.refuse(head + b"\0" * 768, {LENGTH: str(len(head))}).startswith("400")


def test_a_shape_with_as_many_sides_as_a_body_holds_is_refused(server: HostileServer) -> None:
    sides = b"1," * 4_000_000
    body = asked(described(shape="SHAPE")).replace(b'"SHAPE"', b"[" + sides + b"1]")
    assert server.refuse(body).startswith("400")


@pytest.mark.parametrize(
    "datatype",
    ["FP64", "FP16", "BF16", "INT32", "BYTES", "fp32", "FP32 ", "", 32, None, ["FP32"], {}, True],
    ids=str,
)
def test_another_type_is_refused(server: HostileServer, datatype: Any) -> None:
    assert server.refuse(asked(described(datatype=datatype))).startswith("400")


@pytest.mark.parametrize(
    "name",
    ["Input", "input ", "", "logits", "../input", "\0", "x" * 60_000, 0, None, ["input"], {}],
)
def test_an_unknown_input_is_refused(server: HostileServer, name: Any) -> None:
    assert server.refuse(asked(described(name=name))).startswith("400 unknown input")


@pytest.mark.parametrize(
    "inputs",
    [None, [], {}, "input", 1, [None], [[]], ["input"], [{}], [described(), described()],
     [described(), described(name="other")], [described(data=None)],
     [described(parameters={"binary_data_size": 0})], [described(parameters=[])],
     [described(data=None, parameters={"shared_memory_region": "x"})]],
    ids=lambda inputs: str(inputs)[:30],
)  # fmt: skip
def test_inputs_that_are_missing_doubled_or_no_tensors_are_refused(
    server: HostileServer, inputs: Any
) -> None:
    assert server.refuse(json.dumps({"inputs": inputs}).encode()).startswith("400")


@pytest.mark.parametrize(
    "data",
    ["", "abc", 1, {}, [], VALUES[:-1], [*VALUES, 0.5], [*VALUES[:-1], None],
     [*VALUES[:-1], True], [*VALUES[:-1], "1.5"], [*VALUES[:-1], [0.5]], [*VALUES[:-1], {}],
     [VALUES, VALUES], [[value] for value in VALUES], [VALUES[:100], VALUES[100:]],
     np.array(VALUES).reshape(1, 8, 8, 3).tolist(), ["x" * 60_000, *[""] * 4000]],
    ids=lambda data: str(data)[:10],
)  # fmt: skip
def test_data_that_are_not_the_numbers_of_the_shape_are_refused(
    server: HostileServer, data: Any
) -> None:
    assert server.refuse(asked(described(data=data))).startswith("400")


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400, "9" * 5000, "0x1",
               "1.", ".5", "01", "+1", "1_0", "nan"],
    ids=lambda words: words[:12],
)  # fmt: skip
def test_a_number_that_json_does_not_have_is_refused(server: HostileServer, number: str) -> None:
    body = asked(described(data=["NUMBER", *VALUES[1:]])).replace(b'"NUMBER"', number.encode())
    assert server.refuse(body).startswith("400 the request is not JSON")


def test_numbers_that_overflow_to_infinity_are_answered_in_binary_alone(
    server: HostileServer,
) -> None:
    body = asked(described(data=[1e300] * 192))
    assert "NaN or infinity" in server.refuse(body)
    answer = server.send(
        request(INFER, body[:-1] + b', "parameters": {"binary_data_output": true}}')
    )
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"null", b"1", b'"inputs"', b"[]", b"{", b"}", b"{}", b'{"inputs"}', b"\0",
     b"\xff\xfe", b'{"inputs": [1,]}', b"{'inputs': []}", BODY[:JSON_BYTES][:-1],
     json_body(IMAGES) + b"x", json_body(IMAGES) * 2, b"\xef\xbb\xbf" + json_body(IMAGES),
     json_body(IMAGES).decode().encode("utf-16"), json_body(IMAGES).decode().encode("utf-32"),
     b'{"inputs": [], "inputs": []}', asked(described()).replace(b'"name"', b'"name": 1, "name"'),
     asked(described(), id="X").replace(b'"X"', b'"\\ud800"'),
     asked(described(), id="X").replace(b"X", b"\xc3\x28"),
     asked(described(), id="X").replace(b"X", b"a\nb"),
     b"[" * 100_000, b"[" * 1000 + b"]" * 1000, b'{"a":' * 5000, b'{"inputs": ' + b"[" * 40,
     json.dumps({"inputs": "x" * 70_000}).encode(), b"{" + b'"inputs": [],' * 1000 + b"}"],
    ids=lambda body: ascii(body)[:24],
)  # fmt: skip
def test_what_is_not_the_json_of_a_request_is_refused(server: HostileServer, body: bytes) -> None:
    assert server.refuse(body).startswith("400")


def test_keys_by_the_thousand_are_read_and_more_are_not(server: HostileServer) -> None:
    for count, status in ((9_000, "400"), (300_000, "413")):
        keys = ",".join(f'"{number}":0' for number in range(count))
        assert server.refuse(f'{{{keys},"{count - 1}":1}}'.encode()).startswith(status)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"[[]],", b'"ab",', b'{"a":[]},', b"0.1,"])
def test_a_document_of_small_pieces_takes_little_memory(
    server: HostileServer, piece: bytes
) -> None:
    before = server.resident_bytes()
    body = b'{"inputs": [' + piece * (8_000_000 // len(piece)) + b"1]}"
    words = server.refuse(body)
    assert words.startswith("400" if piece == b"0.1," else "413"), words
    assert server.resident_bytes() - before < 150 << 20


@pytest.mark.parametrize(
    "more",
    [{"id": 1}, {"id": None}, {"id": ["a"]}, {"id": {}}, {"id": True}, {"id": "x" * 257},
     {"parameters": []}, {"parameters": "a"}, {"parameters": 1},
     *({"parameters": {"timeout": t}} for t in (-1, "5", 1.5, True, False, [], {}, 2**62)),
     *({"parameters": {"binary_data_output": b}} for b in (0, 1, "false", None, [], {})),
     *({"outputs": o} for o in ("logits", {}, 1, [1], ["logits"], [[]], [{}], [{"name": 1}])),
     {"outputs": [{"name": "other"}]}, {"outputs": [{"name": "logits"}] * 2},
     {"outputs": [{"name": "logits"}] * 2000},
     {"outputs": [{"name": "logits", "parameters": 1}]},
     {"outputs": [{"name": "logits", "parameters": {"binary_data": "no"}}]},
     {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]},
     {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]}],
    ids=lambda more: str(more)[:50],
)  # fmt: skip
def test_ids_parameters_and_outputs_of_other_types_are_refused(
    server: HostileServer, more: dict[str, Any]
) -> None:
    assert server.refuse(asked(described(), **more)).startswith("400")


@pytest.mark.parametrize("timeout", [0, 10_000_000, 2**61])
def test_a_timeout_that_is_none_or_long_changes_nothing(
    server: HostileServer, timeout: int
) -> None:
    body = asked(described(), parameters={"timeout": timeout, "binary_data_output": True})
    server.check_logits(IMAGES[:1], server.send(request(INFER, body)))


def test_a_timeout_that_cannot_be_kept_is_refused_with_503(server: HostileServer) -> None:
    assert server.refuse(asked(described(), parameters={"timeout": 1})).startswith("503")


@pytest.mark.parametrize("count", [MOST + 1, 100, 15_000])
def test_more_images_than_a_batch_holds_are_refused(server: HostileServer, count: int) -> None:
    images = np.zeros((count, 3, 8, 8), np.float32)
    body, length = binary_body(images)
    assert "at most 8" in server.refuse(body, {LENGTH: str(length)})


def test_a_body_beyond_the_bound_is_refused_by_what_it_states(server: HostileServer) -> None:
    for size in (BOUND + 1, 1 << 40, int("9" * 18)):
        raw = request(INFER, headers={"Content-Length": str(size)})
        answer = server.answered(raw + b"\0" * 100_000)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"


def test_a_body_beyond_the_bound_is_refused_by_what_comes(server: HostileServer) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"100000\r\n" + b"\0" * (1 << 20) + b"\r\n"
    answer = server.answered(head + chunk * (BOUND // (1 << 20)) + chunk + b"0\r\n\r\n")
    assert answer.status == 413


def test_json_beyond_its_own_bound_is_refused(server: HostileServer) -> None:
    assert server.refuse(b" " * (9 << 20)).startswith("413")


def deflated(content: bytes) -> bytes:
    return zlib.compress(content)


@pytest.mark.parametrize(
    ("coding", "squeeze"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("GZIP", gzip.compress),
     ("deflate", deflated), ("identity", bytes), (" gzip ", gzip.compress)],
)  # fmt: skip
def test_a_coded_body_gives_the_same_numbers(
    server: HostileServer, coding: str, squeeze: Any
) -> None:
    headers = {LENGTH: str(JSON_BYTES), "Content-Encoding": coding}
    server.check_logits(IMAGES, server.send(request(INFER, squeeze(BODY), headers=headers)))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_when_it_passes_the_bound(server: HostileServer, coding: str) -> None:
    bomb = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    body = b"".join(bomb.compress(b"\0" * (1 << 20)) for _ in range(100)) + bomb.flush()
    assert len(body) < 200_000
    before = server.resident_bytes()
    assert server.refuse(body, {"Content-Encoding": coding}).startswith("413")
    assert server.resident_bytes() - before < 200 << 20


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_stream_that_is_cut_mixed_up_or_followed_by_more_is_refused(
    server: HostileServer, coding: str
) -> None:
    whole = gzip.compress(BODY) if coding == "gzip" else deflated(BODY)
    other = deflated(BODY) if coding == "gzip" else gzip.compress(BODY)
    broken = whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]
    summed = whole[:-6] + bytes([whole[-6] ^ 255]) + whole[-5:]
    wrong = (b"", BODY, whole[:-1], whole[:5], whole + b"x", whole * 2, other, broken, summed)
    for body in wrong:
        headers = {LENGTH: str(JSON_BYTES), "Content-Encoding": coding}
        assert server.refuse(body, headers).startswith("400")


@pytest.mark.parametrize(
    "coding",
    ["br", "zstd", "compress", "gzip, gzip", "gzip, deflate", "gzip;q=1", "\xff", "gz" * 99],
)
def test_an_unknown_or_a_double_coding_is_refused(server: HostileServer, coding: str) -> None:
    raw = request(INFER, gzip.compress(gzip.compress(BODY)), headers={"Content-Encoding": "CODING"})
    answer = server.answered(raw.replace(b"CODING", coding.encode("latin-1")))
    assert answer.status == 415


def test_random_bytes_are_refused_in_every_coding(server: HostileServer) -> None:
    generator = np.random.default_rng(0)
    for coding in ("identity", "gzip", "deflate"):
        for size in (1, 10, 1000, 100_000):
            body = generator.bytes(size)
            assert server.refuse(body, {"Content-Encoding": coding}).startswith("400")
            server.refuse(body, {"Content-Encoding": coding}, f"/v2/models/{MODEL}/classify")


def test_images_that_are_none_are_refused(server: HostileServer) -> None:
    path = f"/v2/models/{MODEL}/classify"
    png = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">II", 100_000, 100_000) + b"\x08\x02\0\0\0"
    wide = png + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(
        ">I", zlib.crc32(b"IHDR" + header))  # fmt: skip
    for body in (b"", b"\0", png, wide, b"\xff\xd8\xff\xe0" + b"\0" * 100, b"GIF89a" + b"\0" * 50):
        words = server.refuse(body, path=path)
        assert words[:3] in ("400", "413", "415"), words
