"""The record of the studies of hostile input: one file, a case each."""

import json
from pathlib import Path
from typing import Any

from benchmarks.serving.study_records import machine

RECORD = Path(__file__).parents[1] / "results" / "hostile_input.json"


def add_case(name: str, found: dict[str, Any], path: Path) -> None:
    """Put a case into the record beside the others."""
    record = json.loads(path.read_text()) if path.is_file() else {"cases": {}}
    record["cases"][name] = {**found, "machine": machine()}
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
