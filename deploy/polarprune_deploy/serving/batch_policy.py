"""When an idle engine starts, and with how many of those that wait. No clock, no threads, no locks.

1. The engine never waits while as many images as fill a batch are there.
2. It waits for company at most a window, counted from the arrival of the oldest, and only if at
   the present rate of arrivals at least one more is to be expected in it.
3. Requests leave in the order in which they came; a batch ends where the next one does not fit, or
   where its company would make one of them late.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polarprune_deploy.serving.batch_curve import BatchCurve

FOREVER = float("inf")
"""The deadline of who has none."""


@dataclass(frozen=True)
class BatchPolicy:
    """What the decisions go by.

    Attributes:
        size: images after which nobody waits any longer, and to which small requests are batched.
        window: seconds that the oldest may wait for company.
        curve: how long a batch takes; None where nobody has measured.
    """

    size: int
    window: float
    curve: BatchCurve | None = None

    def seconds_for(self, rows: int) -> float:
        """What a batch of so many images is expected to take; 0 where nobody knows."""
        return 0.0 if self.curve is None else self.curve.seconds_for(rows)

    def waits_until(
        self, rows: int, oldest: float, earliest_deadline: float, gap: float
    ) -> float | None:
        """Until when an idle engine waits for company; None: it starts now.

        Args:
            rows: images that wait.
            oldest: when the first of them came, seconds.
            earliest_deadline: of those that wait, seconds; infinite where there is none.
            gap: mean seconds between two arrivals, lately.
        """
        if rows >= self.size or self.window <= 0 or gap > self.window:
            return None
        return min(oldest + self.window, earliest_deadline - 2 * self.seconds_for(rows + 1))

    def company(self, rows: Sequence[int], deadlines: Sequence[float], now: float) -> int:
        """How many of those that wait, from the first on, are computed together.

        None of them is late, as far as the curve knows, that would be in time alone.

        Args:
            rows: images of each, in the order of their arrival; at least one.
            deadlines: of each, seconds.
            now: seconds.
        """
        total, earliest = 0, FOREVER
        for index, (images, deadline) in enumerate(zip(rows, deadlines, strict=True)):
            total += images
            if index and total > self.size:
                return index
            # Who is late even alone, is so with the others too and holds up nobody.
            if deadline < FOREVER and now + self.seconds_for(images) <= deadline:
                earliest = min(earliest, deadline)
            if index and earliest < FOREVER and now + self.seconds_for(total) > earliest:
                return index
        return len(rows)
