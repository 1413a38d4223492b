"""A part's budget of seconds: what is not sure to end in time is not begun."""

import time


class TimeIsUp(Exception):
    """What is done is recorded; a later call goes on."""


class Deadline:
    """Seconds from now on, on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        """Start."""
        self._ends = time.monotonic() + seconds

    @property
    def at(self) -> float:
        """On the monotonic clock."""
        return self._ends

    def left(self) -> float:
        """Seconds; below 0 once it has passed."""
        return self._ends - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether something of this length would end in time."""
        return self.left() >= seconds

    def check(self, seconds: float, what: str) -> None:
        """Go no further than time allows.

        Raises:
            TimeIsUp: something of this length would not end in time.
        """
        if not self.allows(seconds):
            raise TimeIsUp(f"time is up before {what}")
