"""Where a verb's words go: people's and machines', progress and errors.

With --json stdout belongs to the machine (one object, on the last line) and people read stderr;
without it people read stdout. Progress is always on stderr: a bar on a terminal, else one line an
epoch.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Where the output is no terminal there is no width to ask for; wide enough for every table.
_PIPE_WIDTH = 120
_REDRAW_SECONDS = 0.5

Progress = Callable[[str, int, int, dict[str, float]], None]


class Terminal:
    """The output of one verb."""

    def __init__(self, as_json: bool) -> None:
        """Decide who reads stdout."""
        self._as_json = as_json

    def show(self, *things: Any) -> None:
        """Print text or rich tables for people."""
        console = make_console(sys.stderr if self._as_json else sys.stdout)
        for thing in things:
            console.print(thing)

    def result(self, document: dict[str, Any]) -> None:
        """Print the one JSON object, if machines read stdout."""
        if self._as_json:
            sys.stderr.flush()
            print(json.dumps(document), flush=True)


def make_console(stream: TextIO) -> "Console":
    """A console that leaves text as it is: no guessing of markup, numbers or emoji."""
    from rich.console import Console

    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_error(message: str) -> None:
    """The one line of a failure."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextmanager
def progress_on(stream: TextIO, *, still: bool = False) -> Iterator[Progress]:
    """A progress callback (text, step, steps, figures) that writes to the stream.

    Args:
        still: draw only inside of the callback, at most twice a second: no thread of its own
            disturbs what is being timed between two calls.
    """
    if not stream.isatty():
        lines = _ProgressLines(stream)
        yield lines
        lines.flush()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    console = make_console(stream)
    with Bars(*columns, console=console, transient=True, auto_refresh=not still) as bars:
        drawn = 0.0
        task = bars.add_task("", total=None, figures="")

        def show(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
            # Drawn at once when the text changes: a stage may be over before the next redraw.
            nonlocal drawn
            if steps == 0:  # a remark, which is to stay
                bars.console.print(f"{text}  {_in_words(figures)}".rstrip())
                return
            new = bars.tasks[0].description != text
            if still and not new and time.monotonic() - drawn > _REDRAW_SECONDS:
                new = True
            if new:
                drawn = time.monotonic()
            bars.update(
                task,
                description=text,
                completed=step,
                total=steps,
                figures=_in_words(figures),
                refresh=new,
            )

        yield show


class _ProgressLines:
    """One line for each text (an epoch, a stage), written when the next one begins, and once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._words = ""
        self._written: set[str] = set()

    def __call__(self, text: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if text != self._text:
            self.flush()
        self._text, self._words = text, _in_words(figures)

    def flush(self) -> None:
        line = f"{self._text}  {self._words}".rstrip()
        if self._text and line not in self._written:
            print(line, file=self._stream, flush=True)
            self._written.add(line)
        self._text = ""


def _in_words(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
