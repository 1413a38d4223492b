"""Measurements on one GPU, in parts of at most nine minutes each.

    PYTHONPATH=.:export:deploy python -m benchmarks.gpu latency
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu staircase
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu predicted
    PYTHONPATH=.:export:deploy python -m benchmarks.gpu cifar --data TREE

A part ends by itself before its --seconds are used up, writes each result as soon as it has it, and
goes on with a record that is there (or with --continue FILE) where it stopped; not on another
device. --dry-run rehearses on the CPU with tiny images. Records go to $OUT, or to --record, or to
benchmarks/results/gpu; of a rehearsal nowhere unless it is said where. The table comes last.
"""

import typer

from benchmarks.gpu.commands import cifar, latency, predicted, staircase
from polarprune.errors import PolarpruneError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for _command in (latency, staircase, predicted, cifar):
    app.command()(_command)


def main() -> None:
    """One line for what is refused."""
    try:
        app()
    except PolarpruneError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
