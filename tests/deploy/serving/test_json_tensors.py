"""Tensors out of JSON lists: the right numbers, or a refusal, and never more memory than needed."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarprune_deploy.serving.request_errors import BAD, RequestError
from polarprune_deploy.serving.tensors import NUMPY, from_list

SCALARS = st.sampled_from(
    [0, 1, -1, 2, 255, 256, -129, 70_000, 2**40, 2**62, 0.5, 1e39, True, False, None, "1", ""]
)
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def nested(values: list[Any], sides: list[int]) -> list[Any]:
    """A row of values as lists of lists."""
    for side in reversed(sides[1:]):
        values = [values[start : start + side] for start in range(0, len(values), side)]
    return values


def is_of(value: Any, datatype: str) -> bool:
    """Whether JSON says a value of the type with it; one value at a time."""
    dtype = NUMPY[datatype]
    if dtype.kind == "b":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return isinstance(value, int) and limits.min <= value <= limits.max


@settings(max_examples=200)
@given(st.data())
def test_a_list_gives_its_values_or_is_refused_where_one_of_them_is_of_another_kind(
    data: st.DataObject,
) -> None:
    datatype = data.draw(st.sampled_from(["BOOL", "UINT8", "INT8", "INT64", "UINT64", "FP32"]))
    shape = data.draw(SHAPES)
    count = int(np.prod(shape))
    values = data.draw(st.lists(SCALARS, min_size=count, max_size=count))
    sent = data.draw(st.sampled_from([values, nested(values, shape)]))
    if all(is_of(value, datatype) for value in values):
        found = from_list(sent, datatype, shape, "x")
        assert (found.dtype, found.shape) == (NUMPY[datatype], tuple(shape))
        with np.errstate(over="ignore"):
            wanted = [NUMPY[datatype].type(value) for value in values]
        assert found.reshape(-1).tolist() == [value.item() for value in wanted]
    else:
        with pytest.raises(RequestError) as error:
            from_list(sent, datatype, shape, "x")
        assert error.value.kind == BAD


@pytest.mark.parametrize(
    "data",
    [
        [],
        [1.0] * 11,
        [1.0] * 13,
        [[1.0] * 6] * 2,
        [[[1.0, 1.0]] * 3] * 2,  # 2x3x2 for 2x2x3: as from a client with another order of axes
        [[1.0] * 3] * 3 + [[1.0] * 2, [1.0] * 4],
        [[1.0] * 3] * 3 + [1.0] * 3,
        [[]] * 12,
        [{}] * 12,
        [None] * 12,
        "abcdefghijkl",
        {"0": 1.0},
        12,
    ],
    ids=str,
)
def test_another_number_or_another_nesting_is_refused(data: Any) -> None:
    with pytest.raises(RequestError, match="input 'x'"):
        from_list(data, "FP32", (2, 2, 3), "x")


def test_one_long_text_among_many_values_takes_no_memory_for_each_of_them() -> None:
    data = ["x" * (1 << 16), *[""] * 50_000]  # 13 GB where every text has room for the longest
    tracemalloc.start()
    with pytest.raises(RequestError, match="input 'x' holds values that are not FP32"):
        from_list(data, "FP32", (len(data),), "x")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50 << 20


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_only_taken_as_binary_data(datatype: str) -> None:
    with pytest.raises(RequestError, match="binary"):
        from_list([1.0], datatype, (1,), "x")
