"""Something of the user's own, by package.module:name."""

import importlib
import os
import sys
from typing import Any

from polarprune.errors import ConfigError, first_line


def import_named(what: str, text: str) -> Any:
    """What a name in a module stands for; the current directory is looked through last.

    Args:
        what: "model", "method": for the error.
        text: package.module:name.

    Raises:
        ConfigError: the module cannot be imported, or has no such name.
    """
    module_name, _, name = text.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it shadows nothing
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module runs here and may raise anything
        raise ConfigError(
            f"{what} {text!r}: cannot import {module_name!r}: {first_line(error)}"
            f"{_remedy(module_name, name, error)}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{what} {text!r}: {module_name} has no callable {name!r}")
    return found


def _remedy(module_name: str, name: str, error: Exception) -> str:
    if module_name.endswith(".py"):
        return f"; write {module_name.removesuffix('.py')}:{name}"
    top = module_name.partition(".")[0]
    # Else it is there, and something that it imports is not.
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return f"; run this in the folder that {top} lies in, or put that folder on PYTHONPATH"
    return ""
