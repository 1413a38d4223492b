"""Requests: what tritonclient would send for the same numbers, and all of them different."""

import json

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import triton_to_np_dtype

from polarprune.errors import ConfigError
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.model_metadata import ServedModel, ServedTensor
from polarprune_deploy.load.request_ring import RequestKind, default_batch, make_ring

ENDPOINT = parse_endpoint("http://[::1]:8000/some/where/v2")
OUTPUTS = (ServedTensor("y", "FP32", (-1, 5)),)


def model(*inputs: ServedTensor) -> ServedModel:
    return ServedModel("a model/b", inputs, OUTPUTS)


def split(message: bytes) -> tuple[str, dict[str, str], bytes]:
    head, body = message.split(b"\r\n\r\n", 1)
    first, *fields = head.decode().split("\r\n")
    return first, dict(field.split(": ", 1) for field in fields), body


def tensors(fields: dict[str, str], body: bytes) -> dict[str, np.ndarray]:
    """What a server makes of a body, by numpy and ml_dtypes alone."""
    length = int(fields["Inference-Header-Content-Length"])
    found, rest = {}, body[length:]
    for each in json.loads(body[:length])["inputs"]:
        size = each["parameters"]["binary_data_size"]
        kind = triton_to_np_dtype(each["datatype"])
        dtype = ml_dtypes.bfloat16 if each["datatype"] == "BF16" else kind
        found[each["name"]] = np.frombuffer(rest[:size], dtype).reshape(each["shape"])
        rest = rest[size:]
    assert rest == b""
    return found


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "FP64", "INT8", "UINT8", "INT64", "BOOL"])
def test_a_request_is_what_tritonclient_sends_for_the_same_numbers(datatype: str) -> None:
    one, two = ServedTensor("x", datatype, (-1, 3, 4)), ServedTensor("z", "FP32", (2, 5))
    message = make_ring(ENDPOINT, model(one, two), RequestKind(batch=2, seed=1))[0]
    first, fields, body = split(message)
    inputs = []
    for spec in (one, two):
        values = tensors(fields, body)[spec.name]
        inputs.append(triton.InferInput(spec.name, values.shape, spec.datatype))
        inputs[-1].set_data_from_numpy(values)
    expected, length = triton.InferenceServerClient.generate_request_body(inputs)
    ours = int(fields["Inference-Header-Content-Length"])
    assert json.loads(body[:ours]) == json.loads(expected[:length])
    assert body[ours:] == expected[length:]
    assert first == "POST /some/where/v2/models/a%20model%2Fb/infer HTTP/1.1"
    assert fields["Content-Length"] == str(len(body))
    assert fields["Host"] == "[::1]:8000"
    assert "Authorization" not in fields


def test_numbers_in_json_are_those_that_go_as_bytes() -> None:
    served = model(ServedTensor("x", "FP32", (-1, 3)), ServedTensor("i", "INT64", (-1, 2)))
    _, fields, body = split(make_ring(ENDPOINT, served, RequestKind(2, seed=4))[3])
    binary = tensors(fields, body)
    _, fields, body = split(make_ring(ENDPOINT, served, RequestKind(2, seed=4, binary=False))[3])
    assert "Inference-Header-Content-Length" not in fields
    for each in json.loads(body)["inputs"]:
        expected = binary[each["name"]]
        got = np.array(each["data"], expected.dtype).reshape(each["shape"])
        assert np.array_equal(got, expected)


def test_bfloat16_has_two_bytes_a_number_and_values_like_the_others() -> None:
    served = model(ServedTensor("x", "BF16", (-1, 3, 64)))
    _, fields, body = split(make_ring(ENDPOINT, served, RequestKind(8))[0])
    values = tensors(fields, body)["x"].astype(np.float64)
    assert 1.0 < np.std(values) < 2.0
    assert np.abs(np.mean(values)) < 1.0


def test_requests_differ_from_each_other_and_follow_the_seed() -> None:
    served = model(ServedTensor("x", "FP32", (-1, 3, 4, 4)))
    ring = make_ring(ENDPOINT, served, RequestKind(1))
    assert len(set(ring)) == len(ring) == 16
    assert make_ring(ENDPOINT, served, RequestKind(1)) == ring
    assert not set(make_ring(ENDPOINT, served, RequestKind(1, seed=1))) & set(ring)
    images = [tensors(*split(message)[1:])["x"] for message in ring]
    # A network that averages over space must be able to tell them apart, too.
    means = np.array([image.mean(axis=(0, 2, 3)) for image in images])
    assert np.min(np.std(means, axis=0)) > 0.5


def test_pixels_are_pixels_and_an_index_is_one_that_exists() -> None:
    served = model(ServedTensor("x", "UINT8", (-1, 8, 8, 3)), ServedTensor("i", "INT32", (-1, 4)))
    for message in make_ring(ENDPOINT, served, RequestKind(4)):
        found = tensors(*split(message)[1:])
        assert found["x"].max() - found["x"].min() > 100
        assert set(np.unique(found["i"])) <= {0, 1}


def test_rings_of_large_requests_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarprune_deploy.load.request_ring.RING_BYTES", 10_000)
    lengths = {}
    for side in (10, 20, 100):
        served = model(ServedTensor("x", "FP32", (-1, side, side)))
        lengths[side] = len(make_ring(ENDPOINT, served, RequestKind(1)))
    assert lengths == {10: 16, 20: 6, 100: 2}


def test_a_token_goes_into_every_request(tmp_path: object) -> None:
    path = tmp_path / "token"  # type: ignore[operator]
    path.write_text("s3cret\n")
    endpoint = parse_endpoint("http://host", path)
    served = model(ServedTensor("x", "FP32", (-1, 3)))
    for message in make_ring(endpoint, served, RequestKind(1)):
        assert split(message)[1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((4, 3, 8, 8), RequestKind(2), "takes batches of 4, got --batch 2"),
        ((-1, 3, -1, -1), RequestKind(1), "images of any size; give --image-size"),
        ((-1, -1), RequestKind(1, image_size=8), r"the open shape \[-1, -1\]"),
        ((-1, 3, 4096, 4096), RequestKind(4), "has 768 MiB, at most 512 are sent"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_words(
    shape: tuple[int, ...], kind: RequestKind, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_ring(ENDPOINT, model(ServedTensor("x", "FP32", shape)), kind)


def test_the_batch_is_what_the_model_is_fixed_to_or_one() -> None:
    assert default_batch(model(ServedTensor("x", "FP32", (4, 3)))) == 4
    assert default_batch(model(ServedTensor("x", "FP32", (-1, 3)))) == 1
