"""`polarprune demo`: the whole chain on real digits."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson
from polarprune.errors import PolarpruneError
from polarprune.terminal import Terminal, progress_on


def demo(
    out: Annotated[Path, typer.Option(help="Run folder to make; absent or empty.")] = Path(
        "polarprune-demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Run the whole chain on real digits, in minutes.

    Trains a ResNet-20 dense and pruned, exports both, times them, draws two pictures, and ends with
    a table. Exits with 1 where the result is not what a demo should show.
    """
    from polarprune_deploy.demonstration import demo_table, run_demo

    terminal = Terminal(as_json)
    with progress_on(sys.stderr) as progress:
        result = run_demo(out, progress)
    terminal.show(demo_table(result), *result.remarks)
    terminal.result(result.as_dict())
    if result.missed:
        raise PolarpruneError(f"the demo missed its bounds: {'; '.join(result.missed)}")
