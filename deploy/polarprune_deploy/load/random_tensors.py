"""Random values for any numeric datatype of the protocol, such that answers to them differ."""

import math

import numpy as np

from polarprune.errors import ConfigError
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.tensors import ITEM_BYTES, NUMPY, from_raw, to_raw


def random_tensor(datatype: str, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Values that the datatype holds exactly: normal ones, pixels, or 0 and 1.

    Noise alone looks alike to a network that averages over space, and no mix-up of its answers
    could be seen. So whatever lies along the second axis has a mean of its own.
    """
    means = generator.standard_normal(shape[:2] + (1,) * len(shape[2:]))
    values = means + generator.standard_normal(shape)
    if datatype == "UINT8":
        values = np.clip(np.rint(128.0 + 64.0 * values), 0, 255)
    elif NUMPY[datatype].kind != "f":
        values = (values > 0).astype(np.float64)  # an index must be one that exists
    return from_raw(to_raw(values, datatype), datatype, shape, "")


def byte_size(datatype: str, shape: tuple[int, ...]) -> int:
    """Of a tensor on the wire."""
    return math.prod(shape) * ITEM_BYTES[datatype]


def check_datatype(datatype: str, tensor: str) -> None:
    """Refuse what is no number.

    Raises:
        ConfigError: which tensor it is.
    """
    if datatype not in NUMPY:
        raise ConfigError(
            f"{tensor} is of datatype {datatype}, and load is made of numbers only: "
            f"{', '.join(NUMPY)}"
        )
