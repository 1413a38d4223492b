"""Writes down which names the installed tensorrt_rtx has: `python record_rtx.py > rtx_1_7.json`.

Run it again when another release is to be covered. It needs no GPU.
"""

import importlib
import json
import sys
from typing import Any

SOURCE = "record_rtx.py on the installed wheel"
BUILDING = {
    *(
        "Builder",
        "IBuilderConfig",
        "IHostMemory",
        "ILogger",
        "ILogger.Severity",
        "INetworkDefinition",
    ),
    *("IOptimizationProfile", "IProgressMonitor", "ITensor", "ITimingCache", "OnnxParser"),
    *("BuilderFlag", "ComputeCapability", "DataType", "HardwareCompatibilityLevel"),
    *("MemoryPoolType", "NetworkDefinitionCreationFlag", "ParserError", "ProfilingVerbosity"),
}
"""The classes and enumerations that have to do with building an engine; layers are left out."""


def record(name: str = "tensorrt_rtx") -> dict[str, Any]:
    """The package's version, values, classes with their attributes, and enumerations."""
    module = importlib.import_module(name)
    classes, enums, values = {}, {}, []
    for attribute in sorted(vars(module)):
        value = getattr(module, attribute)
        if attribute.startswith("_") or not _is_its_own(value, name):
            continue
        if isinstance(value, type) and hasattr(value, "__members__"):
            enums[attribute] = {key: int(member) for key, member in value.__members__.items()}
        elif isinstance(value, type):
            nested = {a: getattr(value, a) for a in dir(value) if not a.startswith("_")}
            classes[attribute] = sorted(nested)
            for inner, kind in nested.items():
                if hasattr(kind, "__members__") and isinstance(kind, type):
                    members = kind.__members__.items()
                    enums[f"{attribute}.{inner}"] = {key: int(member) for key, member in members}
        else:
            values.append(attribute)
    return {
        "module": name,
        "version": module.__version__,
        "source": SOURCE,
        "values": values,
        "enums": {key: enums[key] for key in sorted(BUILDING & set(enums))},
        "classes": {key: classes[key] for key in sorted(BUILDING & set(classes))},
    }


def _is_its_own(value: Any, name: str) -> bool:
    home = getattr(value, "__module__", None) or type(value).__module__
    return str(home).startswith(name)


def as_json(document: dict[str, Any]) -> str:
    """One class or enumeration a line, so that two releases can be compared."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(as_json(record()))
