"""Every type that a model may take, typed and raw, against numpy's own bytes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.grpc_infer import CONTENTS, parse_infer
from polarprune_deploy.serving.infer_requests import Signature
from polarprune_deploy.serving.request_errors import BAD, RequestError
from polarprune_deploy.serving.tensors import DATATYPES, HALF_WITHOUT_JSON

SHAPE = (2, 3)
TYPED = sorted(dtype for dtype, datatype in DATATYPES.items() if datatype in CONTENTS)


def signature(*dtypes: str) -> Signature:
    specs = tuple(TensorSpec(f"x{n}", dtype, (-1, 3)) for n, dtype in enumerate(dtypes))
    return Signature(specs, (), 8)


def request(dtypes: list[str], values: list[list[object]]) -> object:
    made = message_class("ModelInferRequest")(model_name="m")
    for number, (dtype, given) in enumerate(zip(dtypes, values, strict=True)):
        datatype = DATATYPES[dtype]
        described = made.inputs.add(name=f"x{number}", datatype=datatype, shape=SHAPE)
        getattr(described.contents, CONTENTS.get(datatype, ("fp32_contents",))[0]).extend(given)
    return made


def extremes(dtype: str) -> NDArray[np.generic]:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return np.array([True, False, True, True, False, False]).reshape(SHAPE)
    info = np.finfo(dtype) if kind == "f" else np.iinfo(dtype)
    ends = [info.min, info.max, 0, 1, info.max, info.min]
    return np.array(ends, dtype).reshape(SHAPE)


def test_every_type_but_halves_has_contents() -> None:
    assert set(DATATYPES.values()) == CONTENTS.keys() | set(HALF_WITHOUT_JSON)


def test_typed_and_raw_tensors_of_every_type_become_numpys() -> None:
    wanted = [extremes(dtype) for dtype in TYPED]
    typed = request(TYPED, [array.reshape(-1).tolist() for array in wanted])
    raw = request(TYPED, [[]] * len(TYPED))
    views = [memoryview(array.tobytes()) for array in wanted]
    for found in (
        parse_infer(typed, (), signature(*TYPED)),
        parse_infer(raw, views, signature(*TYPED)),
    ):
        assert found.rows == SHAPE[0]
        for array, expected in zip(found.inputs.values(), wanted, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_come_raw_alone(dtype: str) -> None:
    given = np.array([1.5, -2, 0, 3, np.inf, 0.25], np.float32).reshape(SHAPE)
    upper: Array = (given.view(np.uint32) >> 16).astype("<u2")
    content = upper if dtype == "bfloat16" else given.astype("<f2")
    raw = [memoryview(content.tobytes())]
    found = parse_infer(request([dtype], [[]]), raw, signature(dtype))
    np.testing.assert_array_equal(found.inputs["x0"].astype(np.float32), given)
    with pytest.raises(RequestError, match="only be sent in raw_input_contents"):
        parse_infer(request([dtype], [[1.0] * 6]), (), signature(dtype))


@pytest.mark.parametrize(
    ("dtype", "value"), [("int8", 128), ("uint16", 1 << 16), ("int16", -40000)]
)
def test_values_beyond_a_type_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(RequestError, match="outside of") as caught:
        parse_infer(request([dtype], [[value] * 6]), (), signature(dtype))
    assert caught.value.kind == BAD


@pytest.mark.parametrize(
    ("parameter", "seconds", "wanted"),
    [(None, None, None), (2e6, None, 2.0), (None, 3.0, 3.0), (2e6, 3.0, 2.0), (4e6, 3.0, 3.0)],
)
def test_the_sooner_of_two_deadlines_counts(
    parameter: float | None, seconds: float | None, wanted: float | None
) -> None:
    made = request(["float32"], [[0.0] * 6])
    if parameter is not None:
        made.parameters["timeout"].int64_param = int(parameter)  # type: ignore[attr-defined]
    assert parse_infer(made, (), signature("float32"), seconds).timeout == wanted
