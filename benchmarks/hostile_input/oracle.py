"""What must become of a request: the numbers of its answer, or a refusal.

Written from the protocol's description and ours, for the small bundle alone; nothing of the server
is used but the network itself, in ONNX Runtime.
"""

import io
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.hostile_input.requests_sent import LENGTH, Sent
from benchmarks.hostile_input.slow_json import NotJson, read_json

Floats = NDArray[np.float32]

MOST, SIDES, VALUES = 8, [3, 8, 8], 192
LARGEST_BODY, LARGEST_JSON = 64 << 20, 8 << 20
LONGEST_ID = 256
LEISURE = 60_000_000
"""Microseconds; a shorter deadline may pass."""
TAME = 1e6
"""Values beyond it may overflow in one order of summation and not in another."""
PATH = re.compile(
    rb"(?:https?://[^/?#]*)?/v2/models/(?:small|%73mall)(?:/versions/1)?/(infer|classify)"
    rb"(?:\?[^#]*)?(?:#.*)?"
)
ONCE = (b"authorization", b"content-encoding", LENGTH.lower())


class Refused(Exception):
    """The request must be; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """An answer.

    Attributes:
        images: whose logits it holds; None where any answer in order will do.
        binary: how.
        id: echoed.
        may_be_late: its deadline is so short that a refusal is right too.
    """

    images: Floats | None
    binary: bool
    id: str = ""
    may_be_late: bool = False

    @property
    def tame(self) -> bool:
        """Whether its numbers are those of one exact computation."""
        return self.images is not None and bool((np.abs(self.images) < TAME).all())


def judge(sent: Sent) -> Wanted:
    """The answer to an inference, if it is one and in order.

    Raises:
        Refused: it is not.
    """
    found = PATH.fullmatch(sent.path)
    if found is None or found.group(1) != b"infer":
        raise Refused("no such path")
    if sent.method != b"POST":
        raise Refused("another method")
    names = [name.lower() for name, _ in sent.headers]
    if any(names.count(name) > 1 for name in ONCE):
        raise Refused("a header twice")
    headers = {name.lower(): value.strip(b" \t") for name, value in sent.headers}
    body = decoded(sent.read, headers.get(b"content-encoding", b"identity"))
    length = headers.get(LENGTH.lower())
    if length is None:
        return judge_document(body, b"")
    if not re.fullmatch(rb"[0-9]{1,18}", length) or int(length) > len(body):
        raise Refused("no length within the body")
    if int(length) == 0:
        return Wanted(from_bytes(body, 1), binary=True)
    return judge_document(body[: int(length)], body[int(length) :])


def decoded(body: bytes, coding: bytes) -> bytes:
    """The body without its coding.

    Raises:
        Refused: it is another one, or broken.
    """
    word = coding.strip(b" \t").lower()
    if word in (b"", b"identity"):
        return body
    bits = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}.get(word)
    if bits is None:
        raise Refused("unknown coding")
    stream = zlib.decompressobj(bits)
    try:
        whole = stream.decompress(body) + stream.flush()
    except zlib.error:
        raise Refused("broken stream") from None
    if not stream.eof or stream.unused_data or len(whole) > LARGEST_BODY:
        raise Refused("not one whole stream")
    return whole


def judge_document(head: bytes, raw: bytes) -> Wanted:
    """The answer to JSON and the bytes behind it.

    Raises:
        Refused: they are not in order.
    """
    if len(head) > LARGEST_JSON:
        raise Refused("too much JSON")
    try:
        document = read_json(head)
    except NotJson as error:
        raise Refused(str(error)) from None
    _hold(isinstance(document, dict), "no object")
    parameters = _parameters(document)
    binary = parameters.get("binary_data_output", False)
    _hold(isinstance(binary, bool), "binary_data_output")
    timeout = parameters.get("timeout")
    _hold(timeout is None or (_is_whole(timeout) and 0 <= timeout < 1 << 62), "timeout")
    name = document.get("id", "")
    _hold(isinstance(name, str) and len(name) <= LONGEST_ID, "id")
    outputs = document.get("outputs") or []
    _hold(document.get("outputs") is None or isinstance(document["outputs"], list), "outputs")
    _hold(len(outputs) <= 1, "outputs")
    for output in outputs:
        _hold(isinstance(output, dict) and output.get("name") == "logits", "an output")
        asked = _of_tensor(output)
        _hold(not asked.get("classification"), "classification")
        binary = asked.get("binary_data", binary)
        _hold(isinstance(binary, bool), "binary_data")
    inputs = document.get("inputs")
    _hold(isinstance(inputs, list) and len(inputs) == 1, "inputs")
    images = _images(inputs[0], raw)
    late = timeout is not None and 0 < timeout < LEISURE
    return Wanted(images, binary, name, late)


def _images(tensor: Any, raw: bytes) -> Floats:
    _hold(isinstance(tensor, dict), "an input")
    _hold(tensor.get("name") == "input" and tensor.get("datatype") == "FP32", "name or type")
    shape = tensor.get("shape")
    _hold(isinstance(shape, list) and all(map(_is_whole, shape)), "shape")
    _hold(shape[1:] == SIDES and 1 <= shape[0] <= MOST, "shape")
    size = _of_tensor(tensor).get("binary_data_size")
    if size is not None:
        _hold("data" not in tensor, "both")
        _hold(_is_whole(size) and size == len(raw), "size")
        return from_bytes(raw, shape[0])
    _hold(not raw, "bytes that belong to nothing")
    data, flat = tensor.get("data"), []
    _hold(isinstance(data, list), "data")
    if any(isinstance(value, list) for value in data):
        _flatten(data, shape, flat)
    else:
        flat = data
    _hold(len(flat) == shape[0] * VALUES, "another number")
    for value in flat:
        _hold(isinstance(value, int | float) and not isinstance(value, bool), "no number")
    with np.errstate(over="ignore"):
        numbers = [np.float32(np.float64(value)) for value in flat]
    return np.array(numbers, np.float32).reshape(shape)


def _flatten(data: Any, shape: list[int], flat: list[Any]) -> None:
    _hold(isinstance(data, list) and len(data) == shape[0], "nesting")
    for inner in data:
        if len(shape) > 1:
            _flatten(inner, shape[1:], flat)
        else:
            flat.append(inner)


def from_bytes(raw: bytes, count: int) -> Floats:
    """Images out of little-endian bytes.

    Raises:
        Refused: another number of them.
    """
    _hold(len(raw) == count * VALUES * 4, "another number of bytes")
    return np.frombuffer(raw, "<f4").reshape(count, *SIDES)


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    found = holder.get("parameters")
    _hold(found is None or isinstance(found, dict), "parameters")
    return found or {}


def _of_tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    parameters = _parameters(tensor)
    _hold("shared_memory_region" not in parameters, "shared memory")
    return parameters


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _hold(condition: bool, words: str) -> None:
    if not condition:
        raise Refused(words)


def decoded_image(content: bytes) -> Floats | None:
    """What a plain image of 8 x 8 pixels is for the small bundle; None for any other."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            plain = image.mode == "RGB" and image.size == (8, 8)
            if not plain or "transparency" in image.info or image.getexif():
                return None
            pixels = np.asarray(image, np.float32) / 255
    except Exception:  # as many kinds as there are ways to break a file
        return None
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.2, 0.3])
    return ((pixels - mean) / std).transpose(2, 0, 1)[np.newaxis].astype(np.float32)
