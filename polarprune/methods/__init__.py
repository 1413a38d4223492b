"""How gates are driven: one method a file, all behind one small protocol (protocol.py).

A new file in this folder is a new --method of the file's name; so is a class of somebody else's, as
package.module:Class.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from polarprune.errors import ConfigError, PolarpruneError, TrainingError, first_line
from polarprune.importing import import_named
from polarprune.methods.protocol import GateOutput, GateRequest, Method, Units
from polarprune.option_values import check_choice

__all__ = [
    "GateOutput",
    "GateRequest",
    "Method",
    "Units",
    "build_method",
    "called",
    "is_bounded",
    "method_names",
    "naming",
]


def method_names() -> list[str]:
    """Polarprune's own, and those that something else has defined by now."""
    own = [found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__)]
    return sorted({*own, *Method.known} - {"protocol"})


def build_method(name: str, options: dict[str, Any] | None = None) -> Method:
    """The method of this name.

    Args:
        name: one of method_names(), or package.module:Class.
        options: what the method takes beside its name (its `options`); the others must be None.

    Raises:
        ConfigError: there is none, or it does not take an option, or not this value.
    """
    kind = _find(name)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    for key in given:
        if key not in kind.options:
            raise ConfigError(f"--{key} is no option of method {name!r}; leave it out")
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(kind.__abstractmethods__))
        raise ConfigError(f"method {name!r} does not define {lacking}")
    try:
        return kind(**given)
    except PolarpruneError:
        raise
    except Exception as error:  # somebody else's code
        raise ConfigError(f"method {name!r} failed: {_in_words(error)}") from error


def is_bounded(name: str) -> bool:
    """Whether a target decides how much a method keeps; True for names that nobody knows."""
    try:
        return _find(name).bounded
    except ConfigError:
        return True


def called(method: Method) -> str:
    """What --method calls it."""
    kind = type(method)
    if kind.__module__.startswith(f"{__name__}."):
        return kind.name
    return f"{kind.__module__}:{kind.__qualname__}"


@contextmanager
def naming(name: str, part: str, raised: type[PolarpruneError] = TrainingError) -> Iterator[None]:
    """Say whose code failed, where a method's own is run.

    Args:
        name: what --method calls the method.
        part: of the method.
        raised: in place of whatever is not ours, in one line.
    """
    try:
        yield
    except (PolarpruneError, torch.OutOfMemoryError):  # which a loop may wait for
        raise
    except Exception as error:  # somebody else's code
        raise raised(f"method {name!r} failed in {part}: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error) else name


def _find(name: str) -> type[Method]:
    if ":" in name:
        found = import_named("method", name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ConfigError(f"method {name!r} is no subclass of polarprune.methods.Method")
        return found
    check_choice("--method", name, [*method_names(), "package.module:Class"])
    if name not in Method.known:
        importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return Method.known[name]
