"""What pages show in blocks: commands, held to the command line and run in order, and programs."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from warm_process import run_warm

from polarprune.cli import app

Step = list[str] | str
"""The words behind `polarprune`, or a program in Python."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `info` is what stands behind its first fence."""

    info: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Those of a shell that are not empty; where one goes on in the next, as one."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip()]


def blocks(page: str, info: str | None = None) -> list[Block]:
    """Of one kind, or all of a page."""
    found = re.findall(r"^```([^\n]+)\n(.*?)^```$", page, re.M | re.S)
    return [Block(kind, text) for kind, text in found if info in (None, kind)]


def words_of(line: str) -> list[str]:
    """Of a `polarprune ...` line, that first word left out."""
    return shlex.split(line, comments=True)[1:]


def commands(found: list[Block]) -> list[list[str]]:
    """The words of every `polarprune ...` line."""
    lines = [line for block in found for line in block.lines]
    return [words_of(line) for line in lines if line.startswith("polarprune ")]


def shorten(text: str, shorter: Mapping[str, str]) -> str:
    """The text with what takes minutes in place of each key what takes a moment."""
    for long, short in shorter.items():
        text = text.replace(long, short)
    return text


def verb_of(words: list[str]) -> tuple[Any, list[str]]:
    """The verb of the command line that is called, and the words that it gets."""
    verb: Any = typer.main.get_command(app)
    while hasattr(verb, "commands"):
        assert words[0] in verb.commands, words
        verb, words = verb.commands[words[0]], words[1:]
    return verb, words


def check_command(words: list[str]) -> None:
    """Verb, options and values are such as the program takes; nothing is run."""
    verb, words = verb_of(words)
    verb.make_context(str(verb.name), list(words))


# All in one process: most of a verb's time on a tiny network is the import of torch. Nobody reads
# the times that it measures.
RUN_ALL = """
import json, sys
from polarprune.cli import main
from polarprune_deploy import timing
timing.WARM_UP_LIMIT_NS, timing.BLOCK_MS = 1, timing.SHORTEST_BLOCK_MS
for step in json.load(sys.stdin):
    if isinstance(step, str):
        exec(compile(step, "program of a page", "exec"), {"__name__": "page"})
        continue
    print("$", *step, flush=True)
    sys.argv[1:] = step
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def run_program(program: str, folder: Path, steps: list[Step] | None = None) -> str:
    """What a program in a process of its own says on stdout; it ends with 0."""
    return run_warm(program, folder, stdin=json.dumps(steps))
