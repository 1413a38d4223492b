"""Names of requests, by which a sender and this server's log speak of the same one."""

import itertools
import os

LONGEST = 128


class RequestIds:
    """What senders name their requests, or a number where they do not."""

    def __init__(self) -> None:
        """Begin at 1, behind what tells this process from the one before."""
        self._run = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def of(self, given: str) -> str:
        """The sender's own name, if it is short and printable.

        >>> RequestIds().of("order 66")
        'order 66'
        """
        if given and len(given) <= LONGEST and given.isascii() and given.isprintable():
            return given
        return f"{self._run}-{next(self._numbers)}"
