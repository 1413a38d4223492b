"""A TensorRT that is nothing but a description of its names, for machines that have none.

A description (`tests/export/tensorrt_api`) lists the module's classes with their attributes, its
enumerations and its values. Whatever it does not list raises AttributeError here as in the package,
on reading and on setting; what it lists can be called, is recorded, and does the little that a
builder needs to come to an end.
"""

import json
import types
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx

DESCRIPTIONS = Path(__file__).parent / "export" / "tensorrt_api"
PLAN = b"a plan"
TIMINGS = b"timings"

Calls = list[tuple[str, tuple[Any, ...]]]


def describe(name: str) -> dict[str, Any]:
    """The description of that file name, without its ending."""
    document: dict[str, Any] = json.loads((DESCRIPTIONS / f"{name}.json").read_text())
    return document


def fake_tensorrt(description: dict[str, Any], calls: Calls) -> types.ModuleType:
    """A module with exactly the names of the description; what is done to it goes to `calls`."""
    module = types.ModuleType(description["module"])
    module.__version__ = description["version"]  # type: ignore[attr-defined]
    for value in description["values"]:
        setattr(module, value, value)
    if "nptype" in description["values"]:
        module.nptype = np.dtype  # type: ignore[attr-defined]
    enums = {name: IntEnum(name, members) for name, members in description["enums"].items()}
    for name, attributes in description["classes"].items():
        setattr(module, name, _fake_class(module, name, attributes, calls))
    for name, enum in enums.items():
        home, _, last = name.rpartition(".")
        setattr(getattr(module, home) if home else module, last, enum)
    return module


def _fake_class(
    module: types.ModuleType, name: str, attributes: list[str], calls: Calls
) -> type[Any]:
    allowed = set(attributes)

    def set_attribute(self: Any, attribute: str, value: Any) -> None:
        # Classes derived in Python take anything, as those of a binding do.
        if type(self).__name__ == name and not attribute.startswith("_"):
            if attribute not in allowed:
                raise AttributeError(f"{name} has no attribute {attribute!r}")
            calls.append((f"{name}.{attribute} =", (value,)))
        object.__setattr__(self, attribute, value)

    def start(self: Any, *arguments: Any) -> None:
        self._module, self._calls, self._arguments = module, calls, arguments

    members: dict[str, Any] = {"__init__": start, "__setattr__": set_attribute}
    for attribute in attributes:
        does = BEHAVIOUR.get((name, attribute))
        members[attribute] = None
        if does is not None:
            recorded = _recorded(f"{name}.{attribute}", does, calls)
            members[attribute] = property(recorded) if attribute in PROPERTIES else recorded
    return type(name, (), members)


def _recorded(name: str, does: Callable[..., Any], calls: Calls) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any) -> Any:
        calls.append((name, arguments))
        return does(self, *arguments)

    return call


def _make(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: getattr(self._module, name)(*arguments)


def _parse(self: Any, path: str) -> bool:
    network = self._arguments[0]
    network._graph = onnx.load(path).graph
    return True


def _tensor(self: Any, stated: onnx.ValueInfoProto) -> Any:
    tensor = self._module.ITensor()
    kind = stated.type.tensor_type
    given = {
        "name": stated.name,
        "dtype": "float32",
        "shape": tuple(-1 if side.dim_param else side.dim_value for side in kind.shape.dim),
    }
    for key, value in given.items():
        if hasattr(tensor, key):  # only what the description lists
            object.__setattr__(tensor, key, value)
    return tensor


def _build(self: Any, network: Any, config: Any) -> bytes:
    monitor = getattr(config, "progress_monitor", None)
    if monitor is not None:
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            monitor.step_complete("Building", step)
        monitor.phase_finish("Building")
    return PLAN


def _take_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    self._cache = cache
    return cache._arguments[0] != b"of another GPU"


def _make_cache(self: Any, content: bytes) -> Any:
    return None if content == b"refused" else self._module.ITimingCache(content)


BEHAVIOUR: dict[tuple[str, str], Callable[..., Any]] = {
    ("Builder", "create_network"): _make("INetworkDefinition"),
    ("Builder", "create_builder_config"): _make("IBuilderConfig"),
    ("Builder", "create_optimization_profile"): _make("IOptimizationProfile"),
    ("Builder", "build_serialized_network"): _build,
    ("IBuilderConfig", "set_memory_pool_limit"): lambda self, pool, size: None,
    ("IBuilderConfig", "add_optimization_profile"): lambda self, profile: 0,
    ("IBuilderConfig", "set_flag"): lambda self, flag: None,
    ("IBuilderConfig", "set_compute_capability"): lambda self, capability, i: True,
    ("IBuilderConfig", "create_timing_cache"): _make_cache,
    ("IBuilderConfig", "set_timing_cache"): _take_cache,
    ("IBuilderConfig", "get_timing_cache"): lambda self: self._cache,
    ("ITimingCache", "serialize"): lambda self: self._arguments[0] + TIMINGS,
    ("IOptimizationProfile", "set_shape"): lambda self, name, low, opt, high: None,
    ("OnnxParser", "parse_from_file"): _parse,
    ("INetworkDefinition", "num_inputs"): lambda self: len(self._graph.input),
    ("INetworkDefinition", "num_outputs"): lambda self: len(self._graph.output),
    ("INetworkDefinition", "get_input"): lambda self, i: _tensor(self, self._graph.input[i]),
    ("INetworkDefinition", "get_output"): lambda self, i: _tensor(self, self._graph.output[i]),
}
PROPERTIES = {"num_inputs", "num_outputs"}
