"""The Open Inference Protocol's datatypes as bytes: little-endian, row by row."""

import numpy as np
from numpy.typing import NDArray

from polarprune.errors import ConfigError

# numpy has no bfloat16: its bytes are the upper half of a float32.
_BF16 = "BF16"
DTYPES = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    _BF16: np.dtype("<u2"),
}  # fmt: skip
"""What each datatype's elements are on the wire. BYTES is not among them: it is no number."""


def random_tensor(
    datatype: str, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Values that the datatype holds exactly: normal ones, pixels, or 0 and 1.

    Noise alone looks alike to a network that averages over space, and no mix-up of its answers
    could be seen. So whatever lies along the second axis has a mean of its own.
    """
    means = generator.standard_normal(shape[:2] + (1,) * len(shape[2:]))
    values = means + generator.standard_normal(shape)
    if datatype == "UINT8":
        values = np.clip(np.rint(128.0 + 64.0 * values), 0, 255)
    elif datatype not in ("FP16", "FP32", "FP64", _BF16):
        values = (values > 0).astype(np.float64)  # an index must be one that exists
    return from_bytes(to_bytes(values, datatype), datatype)


def to_bytes(values: NDArray[np.float64], datatype: str) -> bytes:
    """Values as the wire has them; those of BF16 lose the lower half of a float32."""
    if datatype == _BF16:
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(DTYPES[datatype]).tobytes()


def from_bytes(content: bytes, datatype: str) -> NDArray[np.float64]:
    """The values of a tensor, flat.

    >>> from_bytes(to_bytes(np.array([1.5, -2.0]), "BF16"), "BF16").tolist()
    [1.5, -2.0]
    """
    found = np.frombuffer(content, DTYPES[datatype])
    if datatype == _BF16:
        found = (found.astype("<u4") << 16).view("<f4")
    return found.astype(np.float64)


def check_datatype(datatype: str, tensor: str) -> None:
    """Refuse what is no number.

    Raises:
        ConfigError: which tensor it is.
    """
    if datatype not in DTYPES:
        raise ConfigError(
            f"{tensor} is of datatype {datatype}, and load is made of numbers only: "
            f"{', '.join(DTYPES)}"
        )
