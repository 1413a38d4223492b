"""Records of latency comparisons: JSON lines from which a reader can recompute every figure.

The first line describes the environment and the request; then, for each comparison, one line with
its row and everything that was concluded, followed by its raw samples, warm-ups apart.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from polarprune_deploy.comparisons import Comparison

SCHEMA = 1


def write_record(
    path: Path,
    *,
    environment: Mapping[str, object],
    request: Mapping[str, object],
    comparisons: Sequence[Comparison],
) -> None:
    """Write all samples, replacing `path` only once the record is whole."""
    lines: list[dict[str, object]] = [
        {"kind": "environment", "schema": SCHEMA, **environment, "request": dict(request)}
    ]
    for number, comparison in enumerate(comparisons):
        lines.append({"kind": "comparison", "comparison": number, **comparison.conclusions()})
        lines.extend(
            {"kind": "sample", "comparison": number, **asdict(sample)}
            for sample in comparison.samples
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Strict JSON: an infinity or NaN in a record is a bug, not a value.
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    partial.write_text(text)
    os.replace(partial, path)
