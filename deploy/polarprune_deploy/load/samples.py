"""What came of each request: raw samples, in the order in which the requests were due."""

from array import array
from collections import Counter
from enum import IntEnum
from math import nan

import numpy as np
from numpy.typing import NDArray

MOST_REASONS = 20
"""A server may word each failure anew."""


class Outcome(IntEnum):
    """What became of a request.

    `REJECTED` is status 503, which a server that is full answers at once. `FAILED` is any other
    status, a connection that broke, and an answer that never came.
    """

    OPEN = 0
    OK = 1
    REJECTED = 2
    FAILED = 3
    WRONG = 4


class Samples:
    """Columns of one load; times are seconds of the event loop's clock.

    Attributes:
        open: how many requests have no answer yet.
        reasons: of the failures, with their counts.
    """

    def __init__(self) -> None:
        self._due, self._sent, self._done = array("d"), array("d"), array("d")
        self._outcomes = array("b")
        self.reasons: Counter[str] = Counter()
        self.open = 0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, due: float, sent: float) -> int:
        """A new request, which is not answered yet; its number. `sent` is NaN before it is."""
        self._due.append(due)
        self._sent.append(sent)
        self._done.append(nan)
        self._outcomes.append(Outcome.OPEN)
        self.open += 1
        return len(self._due) - 1

    def send(self, ticket: int, when: float) -> None:
        """A request that was waiting goes."""
        self._sent[ticket] = when

    def finish(self, ticket: int, outcome: Outcome, when: float, reason: str = "") -> None:
        """What became of it; `reason` says why it failed."""
        self._done[ticket] = when
        self._outcomes[ticket] = outcome
        self.open -= 1
        if reason:
            known = reason in self.reasons or len(self.reasons) < MOST_REASONS
            self.reasons[reason if known else "other reasons"] += 1

    def fail_open(self, when: float, reason: str) -> None:
        """Give up on all that have no answer yet."""
        for ticket in np.flatnonzero(self.outcomes == Outcome.OPEN).tolist():
            self.finish(ticket, Outcome.FAILED, when, reason)

    @property
    def due(self) -> NDArray[np.float64]:
        """When each request should have been sent."""
        return np.array(self._due)

    @property
    def sent(self) -> NDArray[np.float64]:
        """When it was."""
        return np.array(self._sent)

    @property
    def done(self) -> NDArray[np.float64]:
        """When its answer was complete, or it failed."""
        return np.array(self._done)

    @property
    def outcomes(self) -> NDArray[np.int8]:
        """What became of it."""
        return np.array(self._outcomes)
