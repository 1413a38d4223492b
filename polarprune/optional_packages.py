"""Packages that not everybody installs, imported where they are needed."""

from importlib import import_module
from typing import Any

from polarprune.errors import BackendUnavailable, first_line


def import_package(module: str, install: str) -> Any:
    """The module.

    Args:
        install: the command that installs it; what does without it may follow.

    Raises:
        BackendUnavailable: it is not here, or its libraries are not: why, and the command.

    >>> import_package("no_such_module", "pip install 'polarprune[serve]'")
    Traceback (most recent call last):
    polarprune.errors.BackendUnavailable: no_such_module cannot be imported (No module named \
'no_such_module'); run: pip install 'polarprune[serve]'
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # bindings without libraries raise OSError
        raise BackendUnavailable(
            f"{module} cannot be imported ({first_line(error)[:300]}); run: {install}"
        ) from error
