"""Requests on their way through a batcher, alone and in company."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polarprune_deploy.runners import Array
from polarprune_deploy.serving.batch_policy import FOREVER
from polarprune_deploy.serving.request_errors import RequestError

Named = dict[str, Array]
"""Tensors by name, batch first."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One request from its arrival to its result.

    Attributes:
        inputs: by name, batch first.
        rows: images.
        nbytes: of the inputs, as held in memory.
        deadline: on the batcher's clock, seconds.
        token: whatever the sender recognises it by.
        arrived, started, assembled, computed: seconds; how it fared.
        outputs: by name, or None with the `error`.
        waiting: whether it is in the queue.
        canceled: whether its sender took it back while it was.
    """

    inputs: Named
    rows: int
    nbytes: int
    deadline: float = FOREVER
    token: Any = None
    arrived: float = 0.0
    started: float = 0.0
    assembled: float = 0.0
    computed: float = 0.0
    outputs: Named | None = None
    error: RequestError | None = None
    waiting: bool = False
    canceled: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one image; only equal ones can be in one batch."""
        return tuple(array.shape[1:] for array in self.inputs.values())


@dataclass
class Batch:
    """Tickets that were computed together."""

    tickets: Sequence[Ticket]
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = sum(ticket.rows for ticket in self.tickets)
