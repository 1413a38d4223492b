"""What a server makes of hostile input over HTTP.

    PYTHONPATH=.:export:deploy python -m benchmarks.hostile_input fuzz
    PYTHONPATH=.:export:deploy python -m benchmarks.hostile_input schemathesis

Each says what it takes with --help, and records into benchmarks/results/hostile_input.json.
"""

import sys
from importlib import import_module

STUDIES = {
    "fuzz": "benchmarks.hostile_input.fuzz",
    "schemathesis": "benchmarks.hostile_input.schemathesis_study",
}
"""Each module has a `main` that takes the words behind its name."""


def main(words: list[str]) -> int:
    """Run one study."""
    if not words or words[0] not in STUDIES:
        raise SystemExit(f"{__doc__}\nstudies: {', '.join(STUDIES)}")
    code: int = import_module(STUDIES[words[0]]).main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
