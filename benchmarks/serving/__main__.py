"""Studies of the server, each with a client and a server on this machine.

    PYTHONPATH=.:export:deploy python -m benchmarks.serving soak --bundle BUNDLE
    PYTHONPATH=.:export:deploy python -m benchmarks.serving changes
    PYTHONPATH=.:export:deploy python -m benchmarks.serving throughput --bundle BUNDLE
    PYTHONPATH=.:export:deploy python -m benchmarks.serving overload --bundle BUNDLE
    PYTHONPATH=.:export:deploy python -m benchmarks.serving litserve --bundle BUNDLE --python PYTHON

Each says what it takes with --help, records into benchmarks/results/serving unless --record says
otherwise, and prints its table last.
"""

import sys
from importlib import import_module

from polarprune.errors import PolarpruneError

STUDIES = {
    "changes": "benchmarks.serving.changes",
    "litserve": "benchmarks.serving.litserve_rival",
    "overload": "benchmarks.serving.overload",
    "soak": "benchmarks.serving.soak",
    "summary": "benchmarks.serving.summary",
    "throughput": "benchmarks.serving.throughput",
}
"""Each module has a `main` that takes the words behind its name."""


def main(words: list[str]) -> None:
    """Run one study; one line for what is refused."""
    if not words or words[0] not in STUDIES:
        raise SystemExit(f"{__doc__}\nstudies: {', '.join(STUDIES)}")
    try:
        import_module(STUDIES[words[0]]).main(words[1:])
    except PolarpruneError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
