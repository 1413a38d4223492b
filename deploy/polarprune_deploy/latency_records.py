"""Records of latency comparisons: JSON lines from which a reader can recompute every figure.

The first line describes the environment and the request; then, for each comparison, one line with
its row and everything that was concluded, followed by its raw samples, warm-ups apart, and by its
explanation where there is one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from polarprune.errors import ConfigError
from polarprune_deploy.comparisons import Comparison

SCHEMA = 1


def check_record_path(path: Path) -> None:
    """Refuse, before minutes of measuring, a place where no record can be written.

    Raises:
        ConfigError: its folder does not exist, it is a folder itself, or it cannot be written.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--record: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"--record takes a file, and {path} is a folder; give a file in it")
    partial = _partial(path)
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ConfigError(
            f"--record: {path} cannot be written ({error.strerror}); give another file"
        ) from None


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def write_record(
    path: Path,
    *,
    environment: Mapping[str, object],
    request: Mapping[str, object],
    comparisons: Sequence[Comparison],
    explanations: Mapping[int, Mapping[str, object]] | None = None,
) -> None:
    """Write all samples, replacing `path` only once the record is whole.

    Args:
        path: the file.
        environment: what the samples were taken on.
        request: what was asked for.
        comparisons: one for each batch size.
        explanations: of the batch sizes that were explained, `Explanation.as_json`.
    """
    lines: list[dict[str, object]] = [
        {"kind": "environment", "schema": SCHEMA, **environment, "request": dict(request)}
    ]
    for number, comparison in enumerate(comparisons):
        lines.append({"kind": "comparison", "comparison": number, **comparison.conclusions()})
        lines.extend(
            {"kind": "sample", "comparison": number, **asdict(sample)}
            for sample in comparison.samples
        )
        if explanations and (found := explanations.get(comparison.batch)):
            lines.append({"kind": "explanation", "comparison": number, **found})
    write_lines(path, lines)


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Write JSON lines, replacing `path` only once they are whole."""
    partial = _partial(path)
    # Strict JSON: an infinity or NaN in a record is a bug, not a value.
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    partial.write_text(text)
    os.replace(partial, path)
