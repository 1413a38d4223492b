"""Whether batches are computed side by side is a matter of measurement."""

import threading
import time

from polarprune_deploy.serving.batch_curve import BatchCurve
from polarprune_deploy.serving.concurrent_runs import measure_side_by_side

MS = 1e-3
TOGETHER = BatchCurve((1, 2), (10 * MS, 20 * MS))


def test_batches_that_do_not_hold_each_other_up_are_worth_it() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def run(size: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(5 * MS * size)
        with lock:
            running[0] -= 1

    curve = measure_side_by_side(run, [1, 2], 3, TOGETHER)
    assert curve is not None
    assert most == [3]
    assert 5 * MS <= curve.seconds_for(1) < 10 * MS, "the time of one batch, beside two others"
    assert 10 * MS <= curve.seconds_for(2) < 20 * MS


def test_batches_that_wait_for_each_other_are_not() -> None:
    core = threading.Lock()

    def run(size: int) -> None:
        with core:
            time.sleep(10 * MS * size)

    assert measure_side_by_side(run, [1, 2], 2, TOGETHER) is None
