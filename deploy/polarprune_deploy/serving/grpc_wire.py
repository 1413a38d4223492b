"""A request for inference as bytes: its tensors taken out before protobuf reads the rest.

The raw tensors are nearly all of a message; left where they came, they are not copied. The rest is
small in an honest request, and has to be: protobuf makes an object of every two bytes of a hostile
one, so that 64 MiB would become gigabytes.
"""

from polarprune_deploy.serving.request_errors import BAD, TOO_LARGE, RequestError

RAW_INPUT_CONTENTS = 7
"""The field's number in ModelInferRequest."""
MOST_FIELDS = 1024
LONGEST_NUMBER = 10
FIXED = {1: 8, 5: 4}
"""Bytes of a value, by wire type; 0 is a number of variable length, 2 holds its own length."""


def split_tensors(content: bytes, largest: int) -> tuple[bytes, list[memoryview]]:
    """The message without its raw tensors, and those.

    Args:
        content: a ModelInferRequest on the wire.
        largest: bytes that may be left without the raw tensors.

    Raises:
        RequestError: BAD where this is no message, TOO_LARGE where too much is left.
    """
    view, size = memoryview(content), len(content)
    rest: list[memoryview] = []
    tensors: list[memoryview] = []
    at = fields = 0
    while at < size:
        begin = at
        tag, at = _number(content, at)
        fields += 1
        if fields > MOST_FIELDS:
            raise RequestError(BAD, f"a request may have {MOST_FIELDS} tensors and parameters")
        wire_type = tag & 7
        if wire_type == 2:
            length, start = _number(content, at)
            at = start + length
        elif wire_type == 0:
            at = _number(content, at)[1]
        else:
            at += FIXED.get(wire_type, size)
        if at > size:
            raise not_a_message("ModelInferRequest")
        if tag == RAW_INPUT_CONTENTS << 3 | 2:
            tensors.append(view[start:at])
        else:
            rest.append(view[begin:at])
    if sum(map(len, rest)) > largest:
        raise RequestError(
            TOO_LARGE, f"a request may have {largest} bytes besides raw_input_contents; "
            "send tensors there",
        )  # fmt: skip
    return b"".join(rest), tensors


def not_a_message(name: str) -> RequestError:
    """The refusal of bytes that are no message of this name."""
    return RequestError(BAD, f"what was sent is no {name}")


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for index, byte in enumerate(content[at : at + LONGEST_NUMBER]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise not_a_message("ModelInferRequest")
