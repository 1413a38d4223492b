"""An image as people send it, answered with names of classes and their probabilities."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from polarprune.manifest import TensorSpec
from polarprune_deploy.backends.input_making import host_dtype
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.batcher import Named
from polarprune_deploy.serving.image_inputs import CHANNELS, image_input
from polarprune_deploy.serving.image_uploads import uploaded_image
from polarprune_deploy.serving.infer_requests import InferRequest, shown
from polarprune_deploy.serving.request_errors import BAD, CANCELED, RequestError
from polarprune_deploy.serving.served_model import ModelFacts, ServedModel
from polarprune_deploy.serving.thread_queue import ThreadQueue

DEFAULT_TOP = 5
MOST_QUERY_FIELDS = 16


@dataclass(frozen=True)
class ImageRequest:
    """A request to classify, as it came.

    Attributes:
        body: an image file, or a form that holds one.
        content_type: tells forms apart.
        query: of the URL; `top` is how many classes are wanted.
    """

    body: bytes
    content_type: bytes = b""
    query: bytes = b""


async def classify(
    request: ImageRequest,
    find: Callable[[], ServedModel],
    infer: Callable[[ServedModel, InferRequest], Awaitable[Named]],
    images: ThreadQueue,
    most_pixels: int,
) -> dict[str, Any]:
    """The most probable classes, best first.

    Args:
        find: the model as it is now; asked again once the image is decoded, since it may have been
            replaced meanwhile by one that wants its images otherwise.
        infer: outputs by name.
        images: where decoding has its turn.
        most_pixels: that are decoded.

    Raises:
        RequestError: the model has no classes, the image is none, or as `find` and `infer`.
    """
    top = _top(request.query)
    model = find()
    while True:
        image = await _decoded(request, model, images, most_pixels)
        current = find()
        if current is model:
            break
        model = current  # and it decides anew how images become inputs
    facts = model.facts
    scored = _scored(facts)
    asked = InferRequest({facts.signature.inputs[0].name: image}, 1, outputs=(scored.name,))
    outputs = await infer(model, asked)
    return _document(facts, outputs[scored.name][0], top)


def why_not_classified(facts: ModelFacts) -> str | None:
    """Why images cannot be sent to a model, in words; None where they can."""
    name, steps, inputs = facts.name, facts.manifest.preprocessing, facts.signature.inputs
    tensors = f"send tensors to /v2/models/{name}/infer"
    if len(inputs) != 1:
        return f"{name} takes {len(inputs)} inputs, not one image; {tensors}"
    if steps is None:
        return f"the bundle of {name} does not say how an image becomes its input; {tensors}"
    if len(steps.mean) != CHANNELS:
        return f"{name} takes images of {len(steps.mean)} channels, not of {CHANNELS}; {tensors}"
    made = (
        (CHANNELS, steps.height, steps.width)
        if steps.layout == "NCHW"
        else (steps.height, steps.width, CHANNELS)
    )
    wanted = inputs[0].shape[1:]
    fits = len(wanted) == len(made) and all(
        want in (-1, side) for want, side in zip(wanted, made, strict=True)
    )
    if not fits or host_dtype(inputs[0].dtype).kind != ("u" if steps.embedded else "f"):
        return f"the input of {name} is no image as its bundle prepares it; {tensors}"
    scored = _scored(facts).shape
    if len(scored) == 4:
        return f"{name} gives classes for each pixel (segmentation), not for an image; {tensors}"
    if len(scored) != 2 or scored[1] < 2:
        return f"{name} gives no scores of classes; {tensors}"
    return None


def probabilities(scores: Array) -> Array:
    """Softmax in float64.

    >>> probabilities(np.array([0.0, 0.0, 1000.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


async def _decoded(
    request: ImageRequest, model: ServedModel, images: ThreadQueue, most_pixels: int
) -> Array:
    refusal = why_not_classified(model.facts)
    if refusal is not None:
        raise RequestError(BAD, refusal)
    steps, spec = model.facts.manifest.preprocessing, model.facts.signature.inputs[0]
    assert steps is not None

    def decode() -> Array:
        content = uploaded_image(request.body, request.content_type)
        return image_input(content, steps, spec, most_pixels)

    try:
        return await images.run(decode)
    except asyncio.CancelledError:
        model.counters.failed(CANCELED)
        raise


def _scored(facts: ModelFacts) -> TensorSpec:
    """The output that the bundle's accuracy is measured on."""
    outputs = facts.signature.outputs
    return next((spec for spec in outputs if spec.name == "out"), outputs[0])


def _top(query: bytes) -> int:
    """How many classes are wanted.

    Raises:
        RequestError: it is no whole number above 0.
    """
    try:
        fields = parse_qs(query.decode("ascii"), keep_blank_values=True,
                          max_num_fields=MOST_QUERY_FIELDS)  # fmt: skip
    except ValueError:
        raise RequestError(BAD, "the query of the URL cannot be read; ask for ?top=5") from None
    wanted = fields.get("top", [str(DEFAULT_TOP)])[-1]
    if not (wanted.isascii() and wanted.isdigit()) or len(wanted) > 9 or int(wanted) < 1:
        raise RequestError(BAD, f"top must be a whole number above 0, got {shown(wanted)}")
    return int(wanted)


def _document(facts: ModelFacts, scores: Array, top: int) -> dict[str, Any]:
    if not np.isfinite(scores).all():
        raise RequestError(BAD, f"{facts.name} gives no finite scores for this image")
    shares, names = probabilities(scores), facts.manifest.classes
    best = np.argsort(-shares, kind="stable")[:top]
    return {
        "model_name": facts.name,
        "model_version": facts.version,
        "classes": [
            {
                "name": names[index] if index < len(names) else str(index),
                "index": index,
                "probability": float(shares[index]),
            }
            for index in best.tolist()
        ],
    }
