"""`polarprune collapse-onnx`: zeros cut out of any ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson
from polarprune.terminal import Terminal


def collapse_onnx(
    given: Annotated[
        Path, typer.Argument(metavar="IN.onnx", help="A file with filters, gates or scales of 0.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Cut what is zero out of any ONNX file.

    Channels and blocks that no output needs go, whoever made the zeros. Both files are run on
    random inputs and compared; where they differ nothing is written.
    """
    from polarprune_export.onnx_collapse.collapsing import collapse_onnx
    from polarprune_export.onnx_collapse.telling import tell

    report = collapse_onnx(given, out)
    terminal = Terminal(as_json)
    terminal.show(*tell(report))
    terminal.result(report.as_dict())
