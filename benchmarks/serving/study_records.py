"""Where the studies' numbers go: one JSON file a study, an entry a case, replaced when repeated."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import describe_machine
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.statistics import paired_ratio

RESULTS = Path(__file__).parents[1] / "results" / "serving"
PACKAGES = ("onnxruntime", "uvicorn", "starlette", "uvloop", "httptools", "grpcio")


def add_study(name: str, case: str, found: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Put a case into the record of a study, beside the others."""
    path = folder / f"{name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"cases": {}}
    record["cases"][case] = {**found, "machine": machine()}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return path


def write_markdown(path: Path, lines: Sequence[str]) -> None:
    """A table beside its record."""
    path.write_text("\n".join(lines) + "\n")


def machine() -> dict[str, Any]:
    """Processor and versions; no names, no paths."""
    from importlib.metadata import version

    environment = describe_environment()
    return {
        **describe_machine(),
        "usable_cpus": environment["usable_cpus"],
        "git": environment["git"],
        **{name: version(name) for name in PACKAGES},
    }


def ratio_with_interval(numbers: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Median of the paired ratios, with its 95 % interval (nan where the rounds are too few)."""
    found = paired_ratio(list(numbers), list(others), confidence=0.95)
    document = found.as_json()
    return {
        "ratio": document["speedup"],
        "low": document["ci_low"] if document["ci_low"] is not None else math.nan,
        "high": document["ci_high"] if document["ci_high"] is not None else math.nan,
    }
