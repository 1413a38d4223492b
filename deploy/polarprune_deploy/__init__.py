"""Running, timing and serving what polarprune exported.

The names below are looked up when they are first used: importing this package imports no backend
and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarprune_deploy.backends.loading import load_runner
    from polarprune_deploy.backends.runners import Runner
    from polarprune_deploy.benching import bench
    from polarprune_deploy.comparisons import Comparison
    from polarprune_deploy.latency import compare_latency

__all__ = ["Comparison", "Runner", "bench", "compare_latency", "load_runner"]

_HOMES = {
    "Comparison": "comparisons",
    "Runner": "backends.runners",
    "bench": "benching",
    "compare_latency": "latency",
    "load_runner": "backends.loading",
}


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
