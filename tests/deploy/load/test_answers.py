"""Which answers are right: read as tritonclient reads them, compared with the first ones."""

import json

import numpy as np
import pytest
import tritonclient.http as triton

from polarprune_deploy.load.answers import FirstAnswers, UnsoundAnswer, read_tensors
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_deploy.load.model_metadata import ServedModel, ServedTensor

X = ServedTensor("x", "FP32", (-1, 3))
MODEL = ServedModel(
    "m", (X,), (ServedTensor("y", "FP32", (-1, 4)), ServedTensor("k", "INT64", (-1,)))
)
Y = np.arange(8, dtype=np.float32).reshape(2, 4) - 3.5
K = np.array([3, 0])


def answer(y: np.ndarray = Y, k: np.ndarray = K, **changes: object) -> HttpAnswer:
    outputs: list[dict[str, object]] = [
        {"name": "y", "datatype": "FP32", "shape": list(y.shape),
         "parameters": {"binary_data_size": y.nbytes}},
        {"name": "k", "datatype": "INT64", "shape": list(k.shape), "data": k.tolist()},
    ]  # fmt: skip
    outputs[0] |= changes
    text = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return HttpAnswer(200, text + y.astype("<f4").tobytes(), len(text), False)


def test_tensors_are_what_tritonclient_reads() -> None:
    got = read_tensors(answer(), MODEL, batch=2)
    body, length = answer().body, answer().json_length
    expected = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    for name in ("y", "k"):
        assert np.array_equal(got[name], expected.as_numpy(name).ravel())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "z"}, "an output 'z' that the model has not"),
        ({"name": 3}, "an output 3 that the model has not"),
        ({"datatype": "FP16"}, "not as in the metadata"),
        ({"shape": [8]}, "not as in the metadata"),
        ({"shape": [3, 4]}, r"the shape \[3, 4\], not \[2, 4\]"),
        ({"parameters": {"binary_data_size": 31}}, "31 bytes for 8 values of FP32"),
        ({"parameters": {"binary_data_size": 32000}}, "ends before its 32000 bytes"),
        ({"parameters": {}, "data": [1, 2]}, "does not hold its 8 numbers"),
        ({"parameters": {}, "data": "abc"}, "does not hold its 8 numbers"),
        ({"parameters": {}, "data": [0] * 8}, "bytes behind its outputs"),
    ],
)
def test_what_an_output_lacks_is_said(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnsoundAnswer, match=words):
        read_tensors(answer(**changes), MODEL, batch=2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[1]", "JSON without outputs"),
        (b'{"outputs": [3]}', "JSON without outputs"),
        (b'{"outputs": []}', "no output 'y'"),
    ],
)
def test_what_is_no_answer_of_the_protocol_is_said(body: bytes, words: str) -> None:
    with pytest.raises(UnsoundAnswer, match=words):
        read_tensors(HttpAnswer(200, body, None, False), MODEL, batch=2)


def test_rounding_is_no_wrong_answer_and_another_requests_answer_is_one() -> None:
    other = answer(Y[::-1].copy(), K)
    first = FirstAnswers([answer(), other], MODEL, batch=2)
    assert first.alike() == 0
    assert first.same(0, answer())
    assert first.same(1, other)
    assert first.same(0, answer(Y * np.float32(1.01)))
    assert not first.same(0, other)
    assert not first.same(0, answer(Y, K + 1))
    assert not first.same(0, answer(np.full_like(Y, np.nan)))
    assert not first.same(0, HttpAnswer(200, b"{}", None, False))
    changed = Y.copy()
    changed[1, 2] += 0.3
    assert not first.same(0, answer(changed))


def test_answers_that_cannot_be_told_apart_are_counted() -> None:
    near = answer(Y * np.float32(1.001))
    first = FirstAnswers([answer(), near, answer(-Y)], MODEL, batch=2)
    assert first.alike() == 1


def test_a_first_answer_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UnsoundAnswer, match="output 'y' is not finite on random inputs"):
        FirstAnswers([answer(np.full_like(Y, np.inf))], MODEL, batch=2)
