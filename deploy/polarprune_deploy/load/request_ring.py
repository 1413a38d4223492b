"""The requests that are sent: whole messages, made before anything is timed.

A ring of different ones, so that an answer that belongs to another request is noticed.
"""

import json
from dataclasses import dataclass

import numpy as np

from polarprune.errors import ConfigError
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.load.endpoint import Endpoint
from polarprune_deploy.load.model_metadata import ServedModel, ServedTensor
from polarprune_deploy.load.random_tensors import byte_size, random_tensor
from polarprune_deploy.serving.tensors import to_list, to_raw

RING = 16
RING_BYTES = 256 << 20
"""A ring of large requests is shorter, but of two at least."""
LARGEST_REQUEST = 512 << 20


@dataclass(frozen=True)
class RequestKind:
    """What all requests of a ring share.

    Attributes:
        batch: images in each.
        image_size: of free sides behind the batch, pixels; None where there are none.
        binary: tensors as bytes behind the JSON, else as numbers in it.
        seed: decides the numbers.
    """

    batch: int
    image_size: int | None = None
    binary: bool = True
    seed: int = 0


def make_ring(endpoint: Endpoint, model: ServedModel, kind: RequestKind) -> tuple[bytes, ...]:
    """Different requests for a model, head and body.

    Raises:
        ConfigError: the model does not take this batch, leaves another side open, or the request
            would be too large.
    """
    shapes = [fixed_shape(tensor, kind, model.name) for tensor in model.inputs]
    size = sum(
        byte_size(tensor.datatype, shape)
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    )
    if size > LARGEST_REQUEST:
        raise ConfigError(
            f"a request of batch {kind.batch} for {model.name} has {size / (1 << 20):,.0f} MiB, at "
            f"most {LARGEST_REQUEST >> 20} are sent; use a smaller --batch"
        )
    generator = np.random.default_rng([kind.seed, kind.batch])
    return tuple(
        _message(
            endpoint,
            model,
            [
                random_tensor(tensor.datatype, shape, generator)
                for tensor, shape in zip(model.inputs, shapes, strict=True)
            ],
            kind.binary,
        )
        for _ in range(max(2, min(RING, RING_BYTES // size)))
    )


def default_batch(model: ServedModel) -> int:
    """The batch that a model is fixed to, else one image."""
    return max(model.inputs[0].shape[0], 1)


def fixed_shape(tensor: ServedTensor, kind: RequestKind, model: str) -> tuple[int, ...]:
    """An input's shape in a request.

    Raises:
        ConfigError: it takes another batch, or leaves a side open that nothing settles.

    >>> image = ServedTensor("x", "FP32", (-1, 3, -1, -1))
    >>> fixed_shape(image, RequestKind(batch=4, image_size=32), "net")
    (4, 3, 32, 32)
    """
    first, *rest = tensor.shape
    if first not in (-1, kind.batch):
        raise ConfigError(f"{model} takes batches of {first}, got --batch {kind.batch}")
    free = [side for side in rest if side < 0]
    if free and (len(tensor.shape) != 4 or len(free) != 2):
        raise ConfigError(
            f"input {tensor.name} of {model} has the open shape {list(tensor.shape)}; load needs "
            "every side fixed but the batch, and height and width of images"
        )
    if free and kind.image_size is None:
        raise ConfigError(
            f"input {tensor.name} of {model} takes images of any size; give --image-size"
        )
    return (kind.batch, *(kind.image_size or 0 if side < 0 else side for side in rest))


def _message(endpoint: Endpoint, model: ServedModel, tensors: list[Array], binary: bool) -> bytes:
    inputs: list[dict[str, object]] = []
    blobs: list[bytes] = []
    for spec, values in zip(model.inputs, tensors, strict=True):
        described: dict[str, object] = {
            "name": spec.name, "shape": list(values.shape), "datatype": spec.datatype,
        }  # fmt: skip
        if binary:
            blobs.append(to_raw(values, spec.datatype))
            described["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            described["data"] = to_list(values, spec.name)
        inputs.append(described)
    document: dict[str, object] = {"inputs": inputs}
    if binary:
        document["parameters"] = {"binary_data_output": True}
    text = json.dumps(document, separators=(",", ":")).encode()
    body = b"".join([text, *blobs])
    fields = [f"Content-Length: {len(body)}"]
    if binary:
        fields += [
            "Content-Type: application/octet-stream",
            f"Inference-Header-Content-Length: {len(text)}",
        ]
    else:
        fields.append("Content-Type: application/json")
    return endpoint.head("POST", f"{model.path}/infer", *fields) + body
