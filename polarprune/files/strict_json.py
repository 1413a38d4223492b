"""JSON from somebody else: what has no meaning, or no bounds, is refused before it is used.

`json.loads` takes NaN, a key twice, text that no terminal can print and numbers of any size; each
of these would surface later, far from its cause.
"""

import json
import math
from typing import Any

from polarprune.errors import quote

LARGEST_INTEGER = 2**63 - 1
LONGEST_TEXT = 1 << 16
"""Characters of one string."""
DEEPEST = 32
NUMBERS = frozenset({int, float})


def parse_strict(content: str | bytes, largest: int) -> Any:
    """The document in a text.

    Args:
        content: UTF-8 where it is bytes.
        largest: of the content, in bytes or characters.

    Raises:
        ValueError: in one line, what is wrong with it.

    >>> parse_strict('{"a": [1, 2.5]}', 100)
    {'a': [1, 2.5]}
    """
    if len(content) > largest:
        raise ValueError(f"{len(content)} bytes, at most {largest} are read")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quote(key)} is there twice")
            seen.add(key)
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check(document: Any) -> None:
    """Every value inside; the stack is our own, so that depth cannot exhaust Python's."""
    left = [(document, 0)]
    while left:
        value, depth = left.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(value, dict):
            left += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            if not _are_small_numbers(value):
                left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            _check_text(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the number {value} is not finite")
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError("a number is larger than 64 bits hold")


def _are_small_numbers(values: list[Any]) -> bool:
    """Whether nothing else is there: what holds for the least and the largest holds for all."""
    return (
        bool(values)
        and NUMBERS.issuperset(map(type, values))
        and min(values) >= -LARGEST_INTEGER
        and max(values) <= LARGEST_INTEGER
    )


def _check_text(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(text)} characters, at most {LONGEST_TEXT} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text {quote(text)} is half a character") from None
