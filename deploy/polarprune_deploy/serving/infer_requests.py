"""An inference request as both protocols carry it, held to what the model takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.request_errors import BAD, RequestError
from polarprune_deploy.serving.tensors import DATATYPES

LARGEST_SIDE = 1 << 31
LONGEST_QUOTE = 60
MOST_SIDES = 64
"""More of them are not looked at: no model takes so many."""
LONGEST_ID = 256
NO_CLASSIFICATION = (
    "the classification extension is not served; POST an image to /v2/models/{model}/classify"
)
NO_SHARED_MEMORY = "shared memory is not served; send tensors with the request"


@dataclass(frozen=True)
class InferRequest:
    """Inputs by name, in the model's order.

    Attributes:
        inputs: by name, each (rows, ...).
        rows: images.
        id: echoed.
        outputs: names that were asked for, in this order; empty asks for all.
        timeout: seconds from arrival to the start of the computation; None has none.
    """

    inputs: dict[str, Array]
    rows: int
    id: str = ""
    outputs: tuple[str, ...] = ()
    timeout: float | None = None


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs, outputs: of the loaded network; the batch is the first side, -1 where it is free.
        most: images in one request at most.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    most: int
    by_name: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)
    plans: dict[bytes, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Heads of HTTP requests that were read before (`http_infer`)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {spec.name: spec for spec in self.inputs})

    def check_input(
        self, name: object, datatype: object, shape: object
    ) -> tuple[str, str, tuple[int, ...]]:
        """Name, type and shape of an input, if the model takes it.

        Raises:
            RequestError: an unknown name, another type, a shape that does not fit.
        """
        spec = self.by_name.get(name) if isinstance(name, str) else None
        if spec is None:
            raise RequestError(
                BAD, f"unknown input {shown(name)}; this model takes {', '.join(self.by_name)}"
            )
        wanted = DATATYPES[spec.dtype]
        if datatype != wanted:
            raise RequestError(BAD, f"input {name!r} is {wanted}, got {shown(datatype)}")
        if (
            not isinstance(shape, Sequence)
            or isinstance(shape, str)
            or not all(type(side) is int and 0 < side < LARGEST_SIDE for side in shape[:MOST_SIDES])
        ):
            raise RequestError(
                BAD,
                f"the shape of input {name!r} must be whole numbers above 0, got {shown(shape)}",
            )
        fits = len(shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape[1:], shape[1:], strict=True)
        )
        if not fits:
            given = shown(list(shape[:MOST_SIDES]))
            raise RequestError(BAD, f"input {name!r} has shape {list(spec.shape)}, got {given}")
        if not shape[0] <= self.most:
            raise RequestError(
                BAD,
                f"input {name!r} holds {shape[0]} images, at most {self.most} are taken at once",
            )
        if math.prod(shape) >= LARGEST_SIDE:
            raise RequestError(BAD, f"input {name!r} of shape {shown(list(shape))} is too large")
        return spec.name, wanted, tuple(shape)

    def complete(self, inputs: dict[str, Array]) -> tuple[dict[str, Array], int]:
        """All inputs in the model's order, and their common number of images.

        Raises:
            RequestError: one is missing, or they differ in their number of images.
        """
        missing = [name for name in self.by_name if name not in inputs]
        if missing:
            raise RequestError(BAD, f"input {missing[0]!r} is missing")
        ordered = {name: inputs[name] for name in self.by_name}
        rows = {len(array) for array in ordered.values()}
        if len(rows) != 1:
            raise RequestError(BAD, f"inputs differ in their number of images: {sorted(rows)}")
        return ordered, rows.pop()

    def check_outputs(self, names: Sequence[object]) -> tuple[str, ...]:
        """The names of outputs that were asked for.

        Raises:
            RequestError: an unknown one, or one twice.
        """
        known = {spec.name for spec in self.outputs}
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise RequestError(
                    BAD,
                    f"unknown output {shown(name)}; this model gives {', '.join(sorted(known))}",
                )
        if len(set(names)) != len(names):
            raise RequestError(BAD, "an output is asked for twice")
        return tuple(str(name) for name in names)


def check_id(given: object) -> str:
    """What the sender calls the request, to be echoed.

    Raises:
        RequestError: no text, or a long one.
    """
    if not isinstance(given, str) or len(given) > LONGEST_ID:
        raise RequestError(BAD, f"id must be a text of at most {LONGEST_ID} characters")
    return given


def shown(value: object) -> str:
    """A value of a stranger's, in one short printable line."""
    words = ascii(value[:LONGEST_QUOTE] if isinstance(value, str | bytes | list) else value)
    return words if len(words) <= LONGEST_QUOTE else f"{words[:LONGEST_QUOTE]}..."


def timeout_seconds(microseconds: object) -> float | None:
    """The protocol's `timeout` parameter; 0 and nothing are none.

    Raises:
        RequestError: it is no whole number of microseconds.
    """
    if microseconds is None:
        return None
    if type(microseconds) is not int or not 0 <= microseconds < 1 << 62:
        raise RequestError(BAD, f"timeout must be microseconds from 0, got {shown(microseconds)}")
    return microseconds / 1e6 if microseconds else None
