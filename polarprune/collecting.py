"""Python's garbage collector, kept out of what it would slow down."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """No collection inside.

    Thousands of new graph nodes would set off several, 0.2 s each; and one that falls into a block
    that is timed would be booked on whichever network is running.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
