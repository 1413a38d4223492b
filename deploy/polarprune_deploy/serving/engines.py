"""What computes batches, and how a batch becomes the results of its requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from polarprune_deploy.serving.request_errors import BROKEN, RequestError
from polarprune_deploy.serving.tickets import Named, Ticket


class Engine(Protocol):
    """What computes batches, one at a time."""

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        """The inputs of several requests, one behind the other, filled up to a size it takes."""
        ...

    def run(self, batch: Named, rows: int) -> Named:
        """Outputs of the first `rows` images, batch first; nobody else writes into them later."""
        ...


@dataclass(frozen=True)
class Several:
    """An engine that computes several batches at once; an error of one says nothing of another.

    Attributes:
        engine: used by as many threads.
        count: of them, at least 2.
    """

    engine: Engine
    count: int


def compute(
    engine: Engine, tickets: Sequence[Ticket], clock: Callable[[], float]
) -> Exception | None:
    """Give each its outputs or an error of its own, whose cause is returned."""
    rows = sum(ticket.rows for ticket in tickets)
    try:
        batch = engine.assemble([ticket.inputs for ticket in tickets], rows)
        assembled = clock()
        outputs = engine.run(batch, rows)
        for name, array in outputs.items():
            if len(array) != rows:
                raise ValueError(f"output {name} has {len(array)} rows for {rows} images")
    except Exception as error:
        for ticket in tickets:
            ticket.error = RequestError(BROKEN, "the model failed on this request")
            ticket.error.__cause__ = error
            ticket.computed = clock()
        return error
    done, start = clock(), 0
    for ticket in tickets:
        end = start + ticket.rows
        ticket.outputs = {name: array[start:end] for name, array in outputs.items()}
        ticket.assembled, ticket.computed = assembled, done
        start = end
    return None
