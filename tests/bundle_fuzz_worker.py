"""Verifies damaged copies of a bundle, one a line of stdin, and answers one JSON line each.

    python -m tests.bundle_fuzz_worker BUNDLE SCRATCH

It runs under a limit of memory, so that an allocation that is too large fails here and is seen, and
in a process of its own, so that a crash costs one answer and not the test.
"""

import json
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from polarprune.errors import PolarpruneError
from polarprune_deploy import load_runner
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner
from polarprune_export import verify_bundle
from tests.mutations import FORGED, PLAIN, Mutation

ALLOWED_BYTES = 1 << 30


def mutation_of(index: int) -> Mutation:
    """Plain and forged damage in turn, the kinds of each one after another."""
    kinds = PLAIN if index % 2 == 0 else FORGED
    return kinds[index // 2 % len(kinds)]


def outcome(call: Any) -> dict[str, Any]:
    """What a call did: passed, refused in words, or went wrong."""
    start = time.perf_counter()
    try:
        call()
        found: dict[str, Any] = {"outcome": "passed", "message": ""}
    except PolarpruneError as error:
        found = {"outcome": "refused", "kind": type(error).__name__, "message": str(error)}
    except BaseException as error:
        words = f"{type(error).__name__}: {error}"[:300]
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = {"outcome": "error", "message": f"{words} at {where.name}:{where.lineno}"}
    return {**found, "seconds": round(time.perf_counter() - start, 3)}


class CountedSessions:
    """How many sessions the runners have opened since it was last asked."""

    def __init__(self) -> None:
        self.count = 0
        original = OnnxRuntimeRunner._open_session

        def counting(runner: OnnxRuntimeRunner) -> Any:
            self.count += 1
            return original(runner)

        OnnxRuntimeRunner._open_session = counting  # type: ignore[method-assign]

    def take(self) -> int:
        taken, self.count = self.count, 0
        return taken


def run_one(index: int, bundle: Path, scratch: Path, sessions: CountedSessions) -> dict[str, Any]:
    """Damages a copy, verifies it, and loads it as a server would."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    folder = Path(shutil.copytree(bundle, scratch / "bundle"))
    mutation = mutation_of(index)
    mutation.apply(Random(index), folder)
    return {
        "index": index,
        "name": mutation.name,
        "expected": mutation.expected,
        "verify": outcome(lambda: verify_bundle(folder)),
        "deploy": outcome(lambda: load_runner(folder, threads=1).close()),
        "sessions": sessions.take(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def address_space() -> int:
    """Bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    """Answer until stdin ends."""
    bundle, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    verify_bundle(bundle)  # imports what is needed before memory is bounded
    load_runner(bundle, threads=1).close()
    sessions = CountedSessions()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + ALLOWED_BYTES, hard))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for line in sys.stdin:
        answer = run_one(int(line), bundle, scratch, sessions)
        print(json.dumps({**answer, "start": start}), flush=True)


if __name__ == "__main__":
    main()
