"""What is set aside is not looked at, and yet does not stay for ever."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from polarprune_deploy.serving.garbage import set_aside_what_is_loaded


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_is_set_aside_is_collected_only_when_that_is_done_again() -> None:
    node = Node()
    gone = weakref.ref(node)
    set_aside_what_is_loaded()
    assert gc.get_freeze_count() > 0
    del node
    gc.collect()
    assert gone() is not None
    set_aside_what_is_loaded()
    assert gone() is None


def test_what_comes_later_is_collected_as_ever() -> None:
    set_aside_what_is_loaded()
    node = Node()
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None
