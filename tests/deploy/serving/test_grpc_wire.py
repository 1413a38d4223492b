"""Tensors taken out of a request's bytes, against protobuf's own reading of all of them."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.grpc_wire import MOST_FIELDS, split_tensors
from polarprune_deploy.serving.request_errors import TOO_LARGE, RequestError

Request = message_class("ModelInferRequest")
LARGEST = 1 << 20

requests = st.builds(
    lambda name, number, inputs, raw: Request(
        model_name=name, id=number, raw_input_contents=raw,
        inputs=[{"name": name, "shape": shape} for name, shape in inputs],
    ),
    st.text(max_size=300), st.text(max_size=5),
    st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(-1, 1 << 40), max_size=5))),
    st.lists(st.binary(max_size=500), max_size=5),
)  # fmt: skip


def reassembled(content: bytes) -> object:
    rest, tensors = split_tensors(content, LARGEST)
    message = Request.FromString(rest)
    assert not message.raw_input_contents
    message.raw_input_contents.extend(bytes(tensor) for tensor in tensors)
    return message


@given(requests)
def test_rest_and_tensors_are_the_message(request: object) -> None:
    assert reassembled(request.SerializeToString()) == request  # type: ignore[attr-defined]


@given(st.binary(max_size=200), requests)
def test_bytes_that_protobuf_reads_are_read_alike_and_others_refused(
    noise: bytes, request: object
) -> None:
    whole = request.SerializeToString()  # type: ignore[attr-defined]
    for content in (noise, whole + noise, whole[: len(whole) // 2], whole[1:]):
        try:
            expected = Request.FromString(content)
        except DecodeError:
            expected = None
        try:
            found = reassembled(content)
        except (RequestError, DecodeError):
            # Groups, which no version of this message has, are the one thing that only we refuse.
            assert expected is None or any(byte & 7 == 3 for byte in content)
        else:
            assert found == expected


def test_tensors_are_not_copied() -> None:
    content = Request(raw_input_contents=[b"x" * 1000]).SerializeToString()
    _, (tensor,) = split_tensors(content, LARGEST)
    start = np.frombuffer(content, np.uint8).ctypes.data
    assert 0 <= np.frombuffer(tensor, np.uint8).ctypes.data - start < len(content)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x3a\x00", b"\x20\x01"])
def test_more_fields_than_any_model_needs_are_refused(field: bytes) -> None:
    split_tensors(field * MOST_FIELDS, LARGEST)
    with pytest.raises(RequestError, match=str(MOST_FIELDS)):
        split_tensors(field * (MOST_FIELDS + 1), LARGEST)


def test_bytes_beside_the_tensors_are_bounded_and_the_tensors_are_not() -> None:
    split_tensors(Request(raw_input_contents=[bytes(500)]).SerializeToString(), 100)
    with pytest.raises(RequestError, match="100 bytes besides") as caught:
        split_tensors(Request(model_name="x" * 101).SerializeToString(), 100)
    assert caught.value.kind == TOO_LARGE
