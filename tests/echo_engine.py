"""An engine for the batcher that gives every row back, so that it can be seen whose it was."""

import random
import threading
import time
from collections.abc import Sequence

import numpy as np

from polarprune_deploy.serving.batcher import Named


def number_rows(number: int, rows: int, side: int = 1) -> Named:
    """Inputs that no other request has: each row says whose it is and which."""
    array = np.zeros((rows, 2, side), np.int64)
    array[:, 0] = number
    array[:, 1] = np.arange(rows)[:, None]
    return {"input": array}


def answer_of(number: int, rows: int, side: int = 1) -> np.ndarray:
    """What `EchoEngine` must answer to `number_rows`."""
    return number_rows(number, rows, side)["input"] * 2 + 1


class EchoEngine:
    """Gives each row back, times two, plus one; now and then it is slow or fails.

    Args:
        failures: share of the batches that raise.
        longest: seconds that a batch takes at most.
    """

    def __init__(self, seed: int = 0, failures: float = 0.0, longest: float = 0.0) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        """Of each batch that was run, (number, row) of each of its rows."""
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.error: Exception | None = None
        self._random = random.Random(seed)
        self._failures, self._longest = failures, longest

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        return {"input": np.concatenate([part["input"] for part in parts])}

    def run(self, batch: Named, rows: int) -> Named:
        array = batch["input"]
        assert len(array) == rows
        self.batches.append([(int(row[0, 0]), int(row[1, 0])) for row in array])
        self.running.set()
        assert self.gate.wait(30), "the test never opened the gate"
        if self._longest:
            time.sleep(self._random.random() * self._longest)
        if self.error is not None:
            raise self.error
        if self._random.random() < self._failures:
            raise RuntimeError("this batch fails")
        return {"output": array * 2 + 1}
