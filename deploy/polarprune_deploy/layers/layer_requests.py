"""One layer that is to be timed: its geometry, and how many channels it has."""

from collections.abc import Callable
from dataclasses import dataclass

from polarprune.graph.geometry import Geometry

Progress = Callable[[int, int], None]
"""Called with how many are timed, and how many there are."""


@dataclass(frozen=True)
class LayerRequest:
    """A layer to be timed; `inputs` and `outputs` are channels, of a grouped one groups and 1."""

    geometry: Geometry
    inputs: int
    outputs: int

    @property
    def channels(self) -> tuple[int, int, int]:
        """(input channels, output channels, groups)."""
        if self.geometry.group is None:
            return self.inputs, self.outputs, 1
        first, second = self.geometry.group
        return self.inputs * first, self.inputs * second, self.inputs
