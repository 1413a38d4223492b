"""ModelInfer: protobuf's messages on one side, what a model takes and gives on the other."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from polarprune_deploy.backends.runners import Array
from polarprune_deploy.fleet.triton_protocol import message_class
from polarprune_deploy.serving.grpc_wire import not_a_message, split_tensors
from polarprune_deploy.serving.infer_requests import (
    MOST_SIDES,
    NO_CLASSIFICATION,
    NO_SHARED_MEMORY,
    InferRequest,
    Signature,
    check_id,
    timeout_seconds,
)
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import BAD, BROKEN, RequestError
from polarprune_deploy.serving.serve_options import Bounds
from polarprune_deploy.serving.tensors import (
    DATATYPES,
    HALF_WITHOUT_JSON,
    NUMPY,
    from_raw,
    to_raw,
)

CONTENTS: Mapping[str, tuple[str, type[np.generic]]] = MappingProxyType(
    {
        "BOOL": ("bool_contents", np.bool_),
        "UINT8": ("uint_contents", np.uint32),
        "UINT16": ("uint_contents", np.uint32),
        "UINT32": ("uint_contents", np.uint32),
        "UINT64": ("uint64_contents", np.uint64),
        "INT8": ("int_contents", np.int32),
        "INT16": ("int_contents", np.int32),
        "INT32": ("int_contents", np.int32),
        "INT64": ("int64_contents", np.int64),
        "FP32": ("fp32_contents", np.float32),
        "FP64": ("fp64_contents", np.float64),
    }
)
"""Where typed values of each type lie, and as what; there is no such place for halves."""


class Inference:
    """Answers requests with the models of one repository."""

    def __init__(self, repository: Repository, bounds: Bounds) -> None:
        """Nothing is asked yet."""
        self._repository, self._bounds = repository, bounds
        self._request = message_class("ModelInferRequest")

    async def answer(self, content: bytes, seconds: float | None, response: Any) -> None:
        """Fill a ModelInferResponse.

        Args:
            content: a ModelInferRequest on the wire.
            seconds: left until nobody waits any more; None: for ever.
            response: its model and id are there even when this raises, where they are known.

        Raises:
            RequestError: what is wrong with the request, or why it has no result; it is counted
                where there is such a model.
        """
        head, raw = split_tensors(content, self._bounds.json_bytes)
        request = _parsed(self._request, head)
        response.id = check_id(request.id)
        model = self._repository.get(request.model_name, request.model_version)
        response.model_name, response.model_version = model.facts.name, model.facts.version
        try:
            model.batcher.refuse_if_full()
            asked = parse_infer(request, raw, model.facts.signature, seconds)
            outputs, model = await self._repository.infer(model, asked, request.model_version)
        except RequestError as error:
            if not error.counted:
                model.counters.failed(error.kind)
            raise
        except Exception:
            model.counters.failed(BROKEN)
            raise
        response.model_version = model.facts.version
        _fill(response, outputs, model.facts.signature)


def parse_infer(
    request: Any, raw: Sequence[memoryview], signature: Signature, seconds: float | None = None
) -> InferRequest:
    """A ModelInferRequest as the model takes it.

    Args:
        request: without its raw tensors.
        raw: those.
        seconds: left until nobody waits any more.

    Raises:
        RequestError: BAD; what is wrong with it.
    """
    inputs, rows = signature.complete(_inputs(request.inputs, raw, signature))
    for output in request.outputs:
        _check_parameters(output.parameters)
    names = signature.check_outputs([output.name for output in request.outputs])
    timeout = timeout_seconds(_parameter(request.parameters, "timeout"))
    limits = [limit for limit in (timeout, seconds) if limit is not None]
    return InferRequest(inputs, rows, request.id, names, min(limits, default=None))


def _parsed(message: Any, content: bytes) -> Any:
    try:
        return message.FromString(content)
    except DecodeError:
        raise not_a_message("ModelInferRequest") from None


def _inputs(
    described: Sequence[Any], raw: Sequence[memoryview], signature: Signature
) -> dict[str, Array]:
    if raw and len(raw) != len(described):
        raise RequestError(
            BAD, f"there are {len(described)} inputs and {len(raw)} raw_input_contents"
        )
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(described):
        name, datatype, shape = signature.check_input(
            tensor.name, tensor.datatype, list(tensor.shape[:MOST_SIDES])
        )
        if name in arrays:
            raise RequestError(BAD, f"input {name!r} is there twice")
        _check_parameters(tensor.parameters)
        filled = [field.name for field, _ in tensor.contents.ListFields()]
        if not raw:
            arrays[name] = _typed(tensor.contents, filled, datatype, shape, name)
        elif filled:
            raise RequestError(BAD, f"input {name!r} is in contents and in raw_input_contents")
        else:
            arrays[name] = from_raw(raw[index], datatype, shape, name)
    return arrays


def _typed(
    contents: Any, filled: Sequence[str], datatype: str, shape: Sequence[int], name: str
) -> Array:
    if datatype in HALF_WITHOUT_JSON:
        raise RequestError(
            BAD, f"input {name!r} of {datatype} can only be sent in raw_input_contents"
        )
    wanted, carried = CONTENTS[datatype]
    if not filled:
        raise RequestError(BAD, f"input {name!r} has no data, neither raw nor in {wanted}")
    if list(filled) != [wanted]:
        raise RequestError(
            BAD, f"input {name!r} of {datatype} belongs in {wanted}, not in {', '.join(filled)}"
        )
    values = getattr(contents, wanted)
    if len(values) != math.prod(shape):
        raise RequestError(
            BAD, f"input {name!r} of shape {list(shape)} takes {math.prod(shape)} values, "
            f"got {len(values)}",
        )  # fmt: skip
    found = np.fromiter(values, carried, len(values))
    array = found.astype(NUMPY[datatype]).reshape(shape)
    if array.dtype.kind in "iu" and (array.reshape(-1) != found).any():
        raise RequestError(BAD, f"input {name!r} holds values outside of {datatype}")
    return array


def _check_parameters(parameters: Any) -> None:
    """Of a tensor; what would change the answer is not passed over."""
    if "shared_memory_region" in parameters:
        raise RequestError(BAD, NO_SHARED_MEMORY)
    if _parameter(parameters, "classification"):
        raise RequestError(BAD, NO_CLASSIFICATION)


def _parameter(parameters: Any, name: str) -> Any:
    if name not in parameters:  # asking for it would make it
        return None
    found = parameters[name]
    choice = found.WhichOneof("parameter_choice")
    return None if choice is None else getattr(found, choice)


def _fill(response: Any, outputs: Mapping[str, Array], signature: Signature) -> None:
    datatypes = {spec.name: DATATYPES[spec.dtype] for spec in signature.outputs}
    for name, array in outputs.items():
        datatype = datatypes[name]
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(to_raw(array, datatype))
