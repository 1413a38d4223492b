"""JSON from somebody else: what is refused, what is not, and that neither takes long."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarprune.files.strict_json import DEEPEST, LARGEST_INTEGER, parse_strict

LARGEST = 1 << 24
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


def is_plain(value: Any) -> bool:
    """Value by value, what the module says in words."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= LARGEST_INTEGER
    return not isinstance(value, str) or value.encode("utf-8", "replace").decode() == value


@settings(max_examples=50)
@given(VALUES)
def test_a_document_is_taken_if_and_only_if_each_of_its_values_is_plain(value: Any) -> None:
    text = json.dumps(value)
    if is_plain(value):
        assert parse_strict(text, LARGEST) == value
    else:
        with pytest.raises(ValueError, match=r"^[ -~]+$"):  # one printable line
            parse_strict(text, LARGEST)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ("[1.5, 1e400]", "finite"),
        ("[-1e400, 0, 3]", "finite"),
        (f"[1, {2**63}]", "64 bits"),
        (f"[{-(2**63)}, 0.5]", "64 bits"),
        (f"[true, {2**63}]", "64 bits"),
        ("[NaN]", "NaN"),
    ],
)
def test_one_bad_number_in_a_list_of_numbers_is_found(numbers: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_strict(numbers, LARGEST)


def test_floats_beyond_64_bits_of_integer_are_no_integers() -> None:
    assert parse_strict("[1e300, 1]", LARGEST) == [1e300, 1]


@pytest.mark.parametrize("inner", ["1", '"a"', "[]"])
def test_depth_is_bounded_whatever_lies_at_the_bottom(inner: str) -> None:
    deepest = "[" * (DEEPEST - 1) + inner + "]" * (DEEPEST - 1)
    parse_strict(deepest, LARGEST)
    with pytest.raises(ValueError, match="deep"):
        parse_strict(f"[[[{deepest}]]]", LARGEST)


def test_a_key_that_is_there_twice_is_found_in_time_that_grows_with_the_keys() -> None:
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="'199999' is there twice"):
        parse_strict(f'{{{keys},"199999":1}}', LARGEST)
    assert time.process_time() - start < 20  # key against key it would be hours
