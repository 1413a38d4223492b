"""The demo's figures, recorded: `polarprune demo` in a temporary folder.

python -m benchmarks.demo                       # about 2 minutes on two cores
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.records import describe_machine
from polarprune_deploy.demonstration import run_demo

RECORD = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    """Run the demo and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Path(folder) / "run", lambda *_: None)
    figures = result.as_dict()
    for key in ("run", "bundle", "plots"):
        figures.pop(key)
    figures["dense"].pop("run")
    record = {
        "what": "polarprune demo: ResNet-20, digits 16x16, target 0.5, aligned to 8 channels",
        "n": 1,
        "seed": 0,
        "machine": describe_machine(),
        **figures,
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures["rows"], indent=1))


if __name__ == "__main__":
    main()
