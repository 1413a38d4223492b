"""A worker process that answers one JSON line for each number, and is replaced when it dies."""

import json
import selectors
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


def ask_worker(
    command: Sequence[str], numbers: Iterable[int], *, seconds: float, cwd: Path
) -> Iterator[dict[str, Any]]:
    """The answers in order; where there is none, {"index": ..., "lost": why}.

    Args:
        command: starts a worker, which reads one number a line.
        seconds: allowed for one answer; a worker that is just started gets a minute more.
    """
    worker, fresh = _start(command, cwd), True
    try:
        for number in numbers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            why, line = "", b""
            try:
                worker.stdin.write(f"{number}\n".encode())
                worker.stdin.flush()
                line = _line(worker, seconds + 60 * fresh)
            except BrokenPipeError:
                pass
            except TimeoutError:
                why = f"no answer in {seconds:g} s"
            if line:
                yield json.loads(line)
                fresh = False
                continue
            worker.kill()
            code = worker.wait()
            yield {"index": number, "lost": why or f"died with {code}"}
            _close(worker)
            worker, fresh = _start(command, cwd), True
    finally:
        worker.kill()
        worker.wait()
        _close(worker)


def _start(command: Sequence[str], cwd: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=cwd,
    )


def _line(worker: "subprocess.Popen[bytes]", seconds: float) -> bytes:
    """One line, or nothing where the worker died.

    Raises:
        TimeoutError: neither in time.
    """
    assert worker.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            raise TimeoutError
    return worker.stdout.readline()


def _close(worker: "subprocess.Popen[bytes]") -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()
