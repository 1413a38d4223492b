"""The protocol's tensors and numpy's: names of types, raw bytes, nested lists.

numpy has no bfloat16: BF16 is float32 with the lower half of its bits gone, and float32 in memory,
which is also what runners take and give for it.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.request_errors import BAD, RequestError

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name of each type that a bundle may state."""
NUMPY = {
    datatype: np.dtype("float32" if d == "bfloat16" else d) for d, datatype in DATATYPES.items()
}
ITEM_BYTES = {datatype: dtype.itemsize for datatype, dtype in NUMPY.items()} | {"BF16": 2}
"""On the wire."""
HALF_WITHOUT_JSON = ("FP16", "BF16")
ALLOWED: dict[str, set[type]] = {"b": {bool}, "f": {float, int}, "i": {int}, "u": {int}}
"""What JSON may hold for each kind of numpy's types."""


def from_raw(raw: bytes | memoryview, datatype: str, shape: Sequence[int], name: str) -> Array:
    """Little-endian, row-major bytes as an array; a view of them where that is possible.

    Raises:
        RequestError: not as many bytes as the shape needs, or a BOOL that is neither 0 nor 1.
    """
    wanted = math.prod(shape) * ITEM_BYTES[datatype]
    if len(raw) != wanted:
        raise RequestError(
            BAD,
            f"input {name!r} of {datatype} and shape {list(shape)} takes {wanted} bytes, "
            f"got {len(raw)}",
        )
    if datatype == "BF16":
        upper = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return upper.view(np.float32).reshape(shape)
    if datatype == "BOOL":
        bits = np.frombuffer(raw, np.uint8)
        if bits.max(initial=0) > 1:
            raise RequestError(BAD, f"input {name!r} of BOOL holds bytes other than 0 and 1")
        return bits.view(np.bool_).reshape(shape)
    return np.frombuffer(raw, NUMPY[datatype].newbyteorder("<")).reshape(shape)


def from_list(data: Any, datatype: str, shape: Sequence[int], name: str) -> Array:
    """A JSON list as an array: flat, or nested just as the shape says.

    Raises:
        RequestError: another number of values, values of another kind or out of range, or a type
            that JSON has no numbers for.
    """
    if datatype in HALF_WITHOUT_JSON:
        raise RequestError(BAD, f"input {name!r} of {datatype} can only be sent as binary data")
    if not isinstance(data, list):
        raise RequestError(BAD, f"the data of input {name!r} is no list")
    dtype = NUMPY[datatype]
    values, sides, kinds = _flattened(data, name)
    if sides not in ([math.prod(shape)], list(shape)):
        raise RequestError(
            BAD, f"input {name!r} of shape {list(shape)} takes {math.prod(shape)} values, flat or "
            f"nested like that, got {'x'.join(map(str, sides))}",
        )  # fmt: skip
    # Before numpy sees them: it would give every one of them room for the longest text.
    if not kinds <= ALLOWED[dtype.kind]:
        raise RequestError(BAD, f"the data of input {name!r} holds values that are not {datatype}")
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite
            return np.array(values, dtype).reshape(shape)
    except OverflowError:
        raise RequestError(BAD, f"input {name!r} holds values outside of {datatype}") from None


def _flattened(data: list[Any], name: str) -> tuple[list[Any], list[int], set[type]]:
    """The values in a row, the lengths of the lists around them, and what the values are."""
    sides = [len(data)]
    while list in (kinds := set(map(type, data))):
        lengths = set(map(len, data)) if kinds == {list} else set()
        if len(lengths) != 1:
            raise RequestError(BAD, f"the data of input {name!r} is not of one shape")
        sides += lengths
        data = list(chain.from_iterable(data))
    return data, sides, kinds


def to_raw(array: Array, datatype: str) -> bytes:
    """The array as little-endian, row-major bytes."""
    if datatype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        # To the nearest, ties to even; a NaN must not round to infinity.
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        return np.where(np.isnan(array), np.uint16(0x7FC0), rounded).astype("<u2").tobytes()
    dtype = NUMPY[datatype].newbyteorder("<")
    return array.astype(dtype, copy=False).tobytes()


def to_list(array: Array, name: str) -> list[Any]:
    """The array as a flat JSON list.

    Raises:
        RequestError: it holds what JSON has no number for.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            BAD, f"output {name!r} holds NaN or infinity, which JSON cannot say; "
            "ask for binary data",
        )  # fmt: skip
    values: list[Any] = array.reshape(-1).tolist()
    return values
