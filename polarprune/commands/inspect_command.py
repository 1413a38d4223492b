"""`polarprune inspect`: what a model, a run or a bundle is."""

from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson, Classes, ImageSize
from polarprune.terminal import Terminal


def inspect(
    x: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|BUNDLE",
            help="What to look at; a folder of save_network is a MODEL too.",
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="Draw the network with its sites on a page here too.",
            show_default="nowhere",
        ),
    ] = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
) -> None:
    """Show gate sites and MACs, or a bundle's content.

    Of a model or run: sites, units, what was kept, MACs and refusals. Of a bundle: files, digests,
    certificate, where it runs, preprocessing and classes; files that were changed end it with 1.
    """
    from polarprune.inspection.inspecting import BundleInspection, check_files, inspect_source
    from polarprune.inspection.inspection_page import check_page_path, write_page
    from polarprune.inspection.inspection_tables import bundle_tables, network_tables

    if html is not None:
        check_page_path(html)
    found = inspect_source(x, num_classes, image_size)
    if html is not None:
        write_page(found, html)
    terminal = Terminal(as_json)
    if isinstance(found, BundleInspection):
        terminal.show(*bundle_tables(found))
    else:
        terminal.show(*network_tables(found))
    if html is not None:
        terminal.show(f"Page: {html}")
    terminal.result(found.as_dict())
    if isinstance(found, BundleInspection):
        check_files(found)
