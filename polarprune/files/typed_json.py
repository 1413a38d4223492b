"""Dataclasses out of parsed JSON, with every value of the kind that its field is annotated with."""

import dataclasses
import types
import typing
from typing import Any

from polarprune.errors import quote


def build_typed(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated kind.

    Args:
        kind: a dataclass, a plain type, or a tuple, dict or optional of those.
        value: parsed JSON.
        where: the path of the value, for the message.

    Raises:
        ValueError: it is of another kind, lacks a field or has one too many.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return build_typed(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(
            build_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        return {
            key: build_typed(arguments[1], item, f"{where}.{_short(key)}")
            for key, item in value.items()
        }
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:  # `type`: a bool is no int here
        return value
    raise ValueError(f"{where} is of the wrong kind ({type(value).__name__})")


def build_known(kind: Any, value: Any) -> Any:
    """The same of a dataclass, without what it has no field for, in it or in a dataclass inside.

    For what is only shown: a newer writer may say more.
    """
    return build_typed(kind, _known(kind, value), "it")


def _known(kind: Any, value: Any) -> Any:
    """What is left of a value when the keys go that no field takes."""
    inner = [each for each in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(each)]
    if not inner or not isinstance(value, dict):
        return value
    kinds = typing.get_type_hints(inner[0])
    return {key: _known(kinds[key], item) for key, item in value.items() if key in kinds}


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    kinds = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    # A field with a default is younger than some bundles that are about.
    needed = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    missing = sorted(needed - set(value))
    if unknown or missing:
        words = f"unknown {quote(unknown[0])}" if unknown else f"no {missing[0]!r}"
        raise ValueError(f"{where} has {words}")
    given = [name for name in fields if name in value]
    return kind(
        **{name: build_typed(kinds[name], value[name], f"{where}.{name}") for name in given}
    )


def _short(key: str) -> str:
    return key if key.isprintable() and len(key) <= 80 else quote(key)
