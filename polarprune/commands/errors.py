"""Every exception of a verb becomes one line on stderr and an exit code."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from polarprune.errors import PolarpruneError
from polarprune.terminal import print_error

TRACEBACK_VARIABLE = "POLARPRUNE_TRACEBACK"

_FAILED, _MISUSED, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143


class Terminated(SystemExit):
    """SIGTERM, as SLURM and Docker send it before they kill."""


class OneLineErrors(TyperGroup):
    """The group of verbs; errors of theirs end in 1, misuse of options in 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end the process."""
        try:
            with _sigterm_raised():
                code = super().main(
                    args, prog_name, complete_var, False, windows_expand_args, **extra
                )
        except Exception as error:
            # click's own errors; typer may carry a click of its own, so not by their class.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "polarprune"
            print_error(f"{error.format_message().rstrip('.')}; see {path} --help")
            code = _MISUSED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run one verb."""
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:  # what libraries have to say is for developers
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            print_error(_with_notes("interrupted", stop))
            raise typer.Exit(_INTERRUPTED) from None
        except Terminated as stop:
            print_error(_with_notes("terminated", stop))
            raise typer.Exit(_TERMINATED) from None
        except BrokenPipeError:  # `polarprune inspect ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_FAILED) from None
        except Exception as error:
            if isinstance(error, typer.Exit) or hasattr(error, "format_message"):
                raise
            if os.environ.get(TRACEBACK_VARIABLE):
                traceback.print_exc()
            print_error(_in_one_line(error))
            raise typer.Exit(_FAILED) from None


def _in_one_line(error: Exception) -> str:
    if isinstance(error, PolarpruneError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    words = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {words} ({TRACEBACK_VARIABLE}=1 shows where)"


@contextmanager
def noting_when_stopped(note: Callable[[], str | None]) -> Iterator[None]:
    """Say more than that a verb was stopped.

    Args:
        note: asked then; None where there is nothing to say.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if (words := note()) is not None:
            stop.add_note(words)
        raise


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does, so that it cleans up behind itself.

    Only where nobody else has said what SIGTERM does.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated(_TERMINATED)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _with_notes(words: str, stop: BaseException) -> str:
    return "; ".join([words, *getattr(stop, "__notes__", ())])
