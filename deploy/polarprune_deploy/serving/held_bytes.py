"""How many bytes of requests are in memory at a time, whatever protocol they came by."""

from collections.abc import Iterator
from contextlib import contextmanager

from polarprune_deploy.serving.request_errors import REJECTED, RequestError
from polarprune_deploy.serving.serve_options import Bounds


class Held:
    """The bytes of all bodies that are in memory."""

    def __init__(self, bounds: Bounds) -> None:
        """Nothing is held yet."""
        self._bounds = bounds
        self.nbytes = 0

    @contextmanager
    def room(self) -> Iterator["Room"]:
        """Room for one body, given back at the end."""
        room = Room(self)
        try:
            yield room
        finally:
            self.nbytes -= room.nbytes

    def take(self, nbytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            RequestError: that would be more than all may hold together.
        """
        if self.nbytes + nbytes > self._bounds.total_bytes:
            raise RequestError(REJECTED, "too many bytes are being received", 1)
        self.nbytes += nbytes


class Room:
    """What one body holds."""

    def __init__(self, held: Held) -> None:
        """Nothing is held yet."""
        self._held, self.nbytes = held, 0

    def grow(self, nbytes: int) -> None:
        """Hold so many bytes more, or raise."""
        self._held.take(nbytes)
        self.nbytes += nbytes
