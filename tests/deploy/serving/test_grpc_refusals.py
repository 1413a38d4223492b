"""Messages that are wrong or hostile: each gets a status in words, and the server goes on."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format

from polarprune_deploy.fleet.triton_protocol import message_class
from tests.deploy.serving.served_bundle import BODY_MB, MODEL, Reference, some_images
from tests.served import Served

Request = message_class("ModelInferRequest")
Response = message_class("ModelInferResponse")
INFER = "/inference.GRPCInferenceService/ModelInfer"
PATIENCE = 60.0
MIB = 1 << 20
BODY = BODY_MB * MIB
INTERNALS = ("Traceback", 'File "', "polarprune_deploy", "0x7f", "object at")
ONE = 'name: "input" datatype: "FP32" shape: [1, 3, 8, 8]'
GOOD = f"inputs {{ {ONE} }}"
SIZE = 4 * 3 * 8 * 8
"""Bytes of one image."""


@pytest.fixture(scope="module")
def channel(server: Served) -> Iterator[grpc.Channel]:
    unbounded = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", MIB)]
    with grpc.insecure_channel(server.address("grpc"), options=unbounded) as opened:
        yield opened


@pytest.fixture(autouse=True)
def still_right(channel: grpc.Channel, reference: Reference) -> Iterator[None]:
    """After each of them the server answers, and rightly."""
    yield
    image = some_images(0)
    request = message(GOOD, [])
    request.raw_input_contents.append(image.tobytes())
    content = channel.unary_unary(INFER)(request.SerializeToString(), timeout=PATIENCE)
    found = np.frombuffer(Response.FromString(content).raw_output_contents[0], np.float32)
    np.testing.assert_allclose(found, reference(image)[0], rtol=1e-5, atol=1e-6)


def message(text: str, sizes: Sequence[int]) -> Any:
    """A request for the small model, with raw tensors of so many zeros."""
    request = text_format.Parse(text, Request(model_name=MODEL))
    request.raw_input_contents.extend(bytes(size) for size in sizes)
    return request


def refusal(channel: grpc.Channel, content: bytes, **options: Any) -> tuple[str, str]:
    """Status and words; they tell nothing of what goes on inside."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(content, timeout=PATIENCE, **options)
    words = caught.value.details()
    assert words
    assert len(words) < 300
    assert not any(internal in words for internal in INTERNALS)
    return caught.value.code().name, words


def field(number: int, content: bytes) -> bytes:
    """A field of bytes on the wire."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    ("words", "text", "sizes"),
    [
        ("unknown input 'x'", 'inputs { name: "x" }', [0]),
        ("unknown input ''", "inputs {}", [0]),
        ("is FP32, got 'FP16'", 'inputs { name: "input" datatype: "FP16" }', [0]),
        ("is FP32, got 'BYTES'", 'inputs { name: "input" datatype: "BYTES" }', [0]),
        ("has shape [-1, 3, 8, 8], got [3, 8, 8]", GOOD.replace("[1, ", "["), [SIZE]),
        ("has shape [-1, 3, 8, 8], got [1, 3, 4, 8]", GOOD.replace("8, 8", "4, 8"), [SIZE // 2]),
        ("must be whole numbers above 0", GOOD.replace("[1,", "[-1,"), [SIZE]),
        ("must be whole numbers above 0", GOOD.replace("[1,", "[0,"), [SIZE]),
        ("must be whole numbers above 0", GOOD.replace("[1,", "[4611686018427387904,"), [SIZE]),
        ("2147483647 images, at most 8", GOOD.replace("[1,", "[2147483647,"), [SIZE]),
        ("holds 9 images, at most 8", GOOD.replace("[1,", "[9,"), [9 * SIZE]),
        ("takes 1536 bytes, got 768", GOOD.replace("[1,", "[2,"), [SIZE]),
        ("takes 768 bytes, got 769", GOOD, [SIZE + 1]),
        ("takes 768 bytes, got 0", GOOD, [0]),
        ("1 inputs and 2 raw_input_contents", GOOD, [SIZE, SIZE]),
        ("0 inputs and 1 raw_input_contents", "", [SIZE]),
        ("input 'input' is missing", "", []),
        ("has no data, neither raw nor in fp32_contents", GOOD, []),
        ("'input' is there twice", GOOD * 2, [SIZE, SIZE]),
        (
            "in contents and in raw_input_contents",
            f"inputs {{ {ONE} contents {{ fp32_contents: {[0] * 192} }} }}",
            [SIZE],
        ),
        (
            "takes 192 values, got 193",
            f"inputs {{ {ONE} contents {{ fp32_contents: {[0] * 193} }} }}",
            [],
        ),
        (
            "belongs in fp32_contents, not in int_contents",
            f"inputs {{ {ONE} contents {{ int_contents: {[0] * 192} }} }}",
            [],
        ),
        ("unknown output 'x'", f'{GOOD} outputs {{ name: "x" }}', [SIZE]),
        ("asked for twice", f'{GOOD} outputs {{ name: "logits" }} outputs {{ name: "logits" }}',
         [SIZE]),
        ("text of at most 256 characters", f'{GOOD} id: "{"x" * 257}"', [SIZE]),
        *(
            (
                "timeout must be microseconds",
                f'{GOOD} parameters {{ key: "timeout" value {{ {value} }} }}',
                [SIZE],
            )
            for value in ("int64_param: -1", 'string_param: "1"', "bool_param: true")
        ),
        (
            "the classification extension is not served",
            f'{GOOD} outputs {{ name: "logits" parameters '
            '{ key: "classification" value { int64_param: 3 } } }',
            [SIZE],
        ),
        *(
            ("shared memory is not served", text, [])
            for text in (
                f'inputs {{ {ONE} parameters {{ key: "shared_memory_region" }} }}',
                f'inputs {{ {ONE} contents {{ fp32_contents: {[0] * 192} }} }} outputs '
                '{ name: "logits" parameters { key: "shared_memory_region" } }',
            )
        ),
    ],
)  # fmt: skip
def test_requests_that_do_not_fit_are_refused(
    channel: grpc.Channel, words: str, text: str, sizes: list[int]
) -> None:
    code, said = refusal(channel, message(text, sizes).SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert words in said


@pytest.mark.parametrize(
    "content",
    [
        *(os.urandom(size) for size in (1, 10, 1000)),
        b"\xff" * 100,
        b"\x0b" * 10_000,
        field(1, b"\xff\xfe"),
        message(GOOD, [SIZE]).SerializeToString()[:-1],
        field(1, b"small") + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ],
    ids=range(8),
)
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, content: bytes) -> None:
    assert refusal(channel, content)[0] in ("INVALID_ARGUMENT", "NOT_FOUND")


def test_no_message_and_an_empty_one_are_refused(channel: grpc.Channel) -> None:
    assert refusal(channel, b"") == ("NOT_FOUND", "unknown model ''; the models are small")
    with pytest.raises(grpc.RpcError, match="ended without a message") as caught:
        channel.stream_unary(INFER)(iter(()), timeout=PATIENCE)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("INVALID_ARGUMENT", b"\x2a\x00" * (5 * MIB)),
        ("INVALID_ARGUMENT", b"\x3a\x00" * (5 * MIB)),
        ("INVALID_ARGUMENT", field(1, b"small") + field(5, b"\x22\x00" * MIB)),
        ("INVALID_ARGUMENT", field(1, b"small") + field(
            5, field(1, b"input") + field(2, b"FP32") + field(3, b"\x01" * (4 * MIB)))),
        ("INVALID_ARGUMENT", field(1, b"small") + field(
            5, field(1, b"input") + field(2, b"FP32") + field(5, field(4, b"\x01" * (4 * MIB))))),
        ("RESOURCE_EXHAUSTED", field(1, b"small") + field(5, bytes(9 * MIB))),
        ("RESOURCE_EXHAUSTED", bytes(BODY + 1)),
    ],
    ids=["inputs", "tensors", "parameters", "sides", "values", "large rest", "large"],
)  # fmt: skip
def test_messages_that_would_become_gigabytes_do_not(
    channel: grpc.Channel, server: Served, code: str, content: bytes
) -> None:
    with server.growth_below(8 * BODY):
        assert refusal(channel, content)[0] == code


def test_a_message_that_unpacks_beyond_the_bound_is_refused(
    channel: grpc.Channel, server: Served
) -> None:
    bomb = message(GOOD, [100 * MIB]).SerializeToString()
    with server.growth_below(4 * BODY):
        code, _ = refusal(channel, bomb, compression=grpc.Compression.Gzip)
    assert code == "RESOURCE_EXHAUSTED"


def test_metadata_beyond_the_bound_is_refused(channel: grpc.Channel) -> None:
    code, _ = refusal(channel, b"", metadata=[("x-request-id", "x" * 100_000)])
    assert code == "RESOURCE_EXHAUSTED"


def test_methods_and_services_that_nobody_knows_are_unimplemented(channel: grpc.Channel) -> None:
    for path in ("/inference.GRPCInferenceService/Nothing", "/nothing.Service/ModelInfer"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"", timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_garbage_to_the_other_methods_is_refused(channel: grpc.Channel) -> None:
    for method in ("ServerReady", "ModelMetadata", "ModelStatistics", "RepositoryIndex"):
        ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError, match=f"is no {method}Request") as caught:
            ask(b"\xff" * 50, timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_of_all_this_was_unforeseen(server: Served) -> None:
    assert server.failures() == []
