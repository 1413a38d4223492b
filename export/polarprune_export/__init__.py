"""From a pruned network to ONNX, a TensorRT engine and a verified bundle.

The names below are looked up when they are first used, so that importing this package imports
neither torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarprune_export.bundle import write_bundle
    from polarprune_export.bundle_verification import verify_bundle
    from polarprune_export.engine import EngineReport, build_engine
    from polarprune_export.exporting import export_bundle
    from polarprune_export.folding import fold_batchnorms
    from polarprune_export.onnx_collapse.collapsing import CollapseReport, collapse_onnx
    from polarprune_export.onnx_lint import lint_onnx
    from polarprune_export.onnx_writer import OnnxReport, write_onnx
    from polarprune_export.parity import check_parity

__all__ = [
    "CollapseReport",
    "EngineReport",
    "OnnxReport",
    "build_engine",
    "check_parity",
    "collapse_onnx",
    "export_bundle",
    "fold_batchnorms",
    "lint_onnx",
    "verify_bundle",
    "write_bundle",
    "write_onnx",
]

_HOMES = {
    "CollapseReport": "onnx_collapse.collapsing",
    "EngineReport": "engine",
    "OnnxReport": "onnx_writer",
    "build_engine": "engine",
    "check_parity": "parity",
    "collapse_onnx": "onnx_collapse.collapsing",
    "export_bundle": "exporting",
    "fold_batchnorms": "folding",
    "lint_onnx": "onnx_lint",
    "verify_bundle": "bundle_verification",
    "write_bundle": "bundle",
    "write_onnx": "onnx_writer",
}


def __getattr__(name: str) -> object:
    """Imports the module of a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
