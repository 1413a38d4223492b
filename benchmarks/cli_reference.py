"""Every verb's help on one page: docs/cli.md, compared with the program by a test.

python -m benchmarks.cli_reference          # writes it
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from polarprune.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100


def command() -> Any:
    """The group of all verbs."""
    return typer.main.get_command(app)


def helps(verb: Any, path: str) -> Iterator[tuple[str, str]]:
    """A command's words and its help, then those of the commands below it."""
    context = verb.make_context(path, [], resilient_parsing=True, max_content_width=WIDTH,
                                   terminal_width=WIDTH)  # fmt: skip
    yield path, verb.get_help(context)
    for name, below in getattr(verb, "commands", {}).items():
        yield from helps(below, f"{path} {name}")


def page() -> str:
    """The whole page."""
    parts = ["# The command line", "", "Written by `python -m benchmarks.cli_reference`."]
    for path, words in helps(command(), "polarprune"):
        lines = [line.rstrip() for line in words.strip().splitlines()]
        parts += ["", f"## {path}", "", "```text", *lines, "```"]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
