"""polarprune: train an image network once, cut what it can do without, check it, ship it.

The public names load on first use, so that `polarprune --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polarprune.alignment import choose_alignment as choose_alignment
    from polarprune.attaching import attach_gates as attach_gates
    from polarprune.certificates import Certificate as Certificate
    from polarprune.certificates import certify as certify
    from polarprune.collapsing import collapse as collapse
    from polarprune.gates import GatedNetwork as GatedNetwork
    from polarprune.graph.cost import count_macs as count_macs
    from polarprune.graph.sites import GateSite as GateSite
    from polarprune.graph.sites import Refusal as Refusal
    from polarprune.latency_table import LatencyTable as LatencyTable
    from polarprune.latency_table import read_latency_table as read_latency_table
    from polarprune.network_files import load_network as load_network
    from polarprune.network_files import save_network as save_network
    from polarprune.networks import build_network as build_network
    from polarprune.onepass import OnePass as OnePass
    from polarprune.runs.training import TrainConfig as TrainConfig
    from polarprune.runs.training import TrainResult as TrainResult
    from polarprune.runs.training import train as train

__version__ = "0.1.0"

_HOME = {
    "Certificate": "certificates",
    "GateSite": "graph.sites",
    "GatedNetwork": "gates",
    "LatencyTable": "latency_table",
    "OnePass": "onepass",
    "Refusal": "graph.sites",
    "TrainConfig": "runs.training",
    "TrainResult": "runs.training",
    "attach_gates": "attaching",
    "build_network": "networks",
    "certify": "certificates",
    "choose_alignment": "alignment",
    "collapse": "collapsing",
    "count_macs": "graph.cost",
    "load_network": "network_files",
    "read_latency_table": "latency_table",
    "save_network": "network_files",
    "train": "runs.training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polarprune' has no attribute {name!r}")
    return getattr(import_module(f"polarprune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
