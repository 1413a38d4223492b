"""Which comparisons are made, the most telling ones first, and how long one takes.

A cell is one network at one bound, in one way of running, at one batch size: dense and all its cuts
in one race. The headline comes first: ResNet-50 at half of its MACs in fp16 as a CUDA graph.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

NETWORKS = (
    "resnet50", "resnet18", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny"
)  # fmt: skip
MODES = ("graph", "eager", "onnxruntime", "compile", "compile-graph")
PRECISIONS = ("fp16", "bf16", "fp32")
# What a step away from the headline costs in rank; anything else than these is a larger step.
_STEPS: dict[str, dict[Any, float]] = {
    "network": {name: float(place) for place, name in enumerate(NETWORKS)},
    "kept": {0.5: 0.0, 0.25: 1.5, 0.75: 2.0},
    "batch": {1: 0.0, 64: 0.0, 8: 2.5, 256: 3.0},
    "precision": {"fp16": 0.0, "bf16": 4.0},
    "mode": {"graph": 0.0, "eager": 3.0, "onnxruntime": 3.5, "compile": 5.0, "compile-graph": 8.0},
}
_OTHER = 5.0
# Of a first cell, seconds; later ones go by what was seen. Inductor compiles each of the sides.
_FIRST_GUESS = {"graph": 40.0, "eager": 40.0, "onnxruntime": 60.0}
_COMPILING = 300.0
_BUILDING = 30.0
_LARGE_BATCH, _LARGER = 128, 2.0
_MARGIN = 1.25


@dataclass(frozen=True)
class Cell:
    """One race."""

    network: str
    kept: float
    precision: str
    mode: str
    batch: int

    @property
    def key(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    def __str__(self) -> str:
        """In one line."""
        return (
            f"{self.network} at {self.kept:g} of its MACs, {self.precision}, {self.mode}, "
            f"batch {self.batch}"
        )


def ordered_cells(
    networks: Sequence[str],
    kept: Sequence[float],
    precisions: Sequence[str],
    modes: Sequence[str],
    batches: Sequence[int],
) -> list[Cell]:
    """Every combination, what matters most first; ties in the order that was asked for."""
    product = itertools.product(networks, kept, precisions, modes, batches)
    cells = [
        Cell(network, share, precision, mode, batch)
        for network, share, precision, mode, batch in product
    ]
    return sorted(cells, key=_rank)


def _rank(cell: Cell) -> float:
    return sum(_STEPS[name].get(value, _OTHER) for name, value in cell.key.items())


class Costs:
    """Seconds that cells took, and what the next one may take."""

    def __init__(self) -> None:
        """Nothing was seen."""
        self._seen: dict[tuple[str, str, int], float] = {}

    def saw(self, cell: Cell, seconds: float) -> None:
        """A cell took so long, its networks apart."""
        for network in (cell.network, ""):
            self._seen[network, cell.mode, cell.batch] = seconds

    def guess(self, cell: Cell, built: bool) -> float:
        """Seconds, with a margin; of the same network if it was seen, else of the last one."""
        building = 0.0 if built else _BUILDING
        for network in (cell.network, ""):
            seen = self._seen.get((network, cell.mode, cell.batch))
            if seen is not None:
                return _MARGIN * seen + building
        first = _FIRST_GUESS.get(cell.mode, _COMPILING)
        return first * (_LARGER if cell.batch >= _LARGE_BATCH else 1.0) + building
