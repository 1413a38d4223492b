"""Measured times of a network's mixing layers over their channel counts (`polarprune profile`).

A layer's time is a staircase in its counts: kernels come in blocks, and counts that are no multiple
of them may take another, slower way. So counts fall into classes by the largest of the table's
multiples that divides them, times are measured on a grid of counts for each pair of classes, and
between the counts of a grid time is bilinear, which a time of a + b x inputs x outputs is exactly.

What lies between and around the layers (additions, poolings, conversions between layouts, the call
itself) enters as two factors and a constant, fitted on whole networks: layers whose counts are no
multiples of the largest have conversions and operators of their own around them. Source: ours.
"""

import bisect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polarprune.errors import ConfigError
from polarprune.files.strict_json import parse_strict
from polarprune.graph.geometry import Geometry

SCHEMA = 1
WHAT = "polarprune latency table"
_LARGEST_FILE = 64 << 20

Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerPoint:
    """One measured layer.

    Attributes:
        inputs, outputs: channels; of grouped layers the number of groups, and 1.
        ms: one run of the layer, milliseconds.
    """

    inputs: int
    outputs: int
    ms: float


@dataclass(frozen=True)
class Staircase:
    """Times over many neighbouring counts of one side: what the multiples were found from."""

    geometry: Geometry
    side: str
    other: int
    counts: tuple[int, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class Slope:
    """A time at some counts, milliseconds, and how it changes with them, milliseconds a channel."""

    ms: float
    inputs: float
    outputs: float


@dataclass(frozen=True)
class _Surface:
    """Times on a grid of counts of one pair of classes."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def at(self, inputs: float, outputs: float) -> Slope:
        row, across = _segment(self.inputs, inputs)
        column, along = _segment(self.outputs, outputs)
        low, high = self.ms[row], self.ms[min(row + 1, len(self.ms) - 1)]
        right = min(column + 1, len(low) - 1)
        left_ms = low[column] + across * (high[column] - low[column])
        right_ms = low[right] + across * (high[right] - low[right])
        ms = left_ms + along * (right_ms - left_ms)
        if ms <= 0.0:  # beyond the smallest counts measured
            return Slope(0.0, 0.0, 0.0)
        by_row = (high[column] - low[column]) * (1 - along) + (high[right] - low[right]) * along
        return Slope(
            ms,
            by_row / _width(self.inputs, row),
            (right_ms - left_ms) / _width(self.outputs, column),
        )


def _segment(counts: Sequence[int], count: float) -> tuple[int, float]:
    """The measured count before this one, and how far it lies on the way to the next, 0..1.

    Beyond the ends the last two go on; a side with a single count is the same everywhere.
    """
    if len(counts) == 1:
        return 0, 0.0
    place = min(max(bisect.bisect_right(counts, count) - 1, 0), len(counts) - 2)
    return place, (count - counts[place]) / (counts[place + 1] - counts[place])


def _width(counts: Sequence[int], place: int) -> int:
    return counts[place + 1] - counts[place] if len(counts) > 1 else 1


@dataclass(frozen=True)
class LatencyTable:
    """What `polarprune profile` measured for one network on one device.

    Attributes:
        head: model, input shape, batch, backend, device, precision, threads, environment.
        multiples: of inputs and of outputs: what makes a difference to be a multiple of, ascending
            from 1.
        points: per geometry every count that was measured.
        factor, off_factor, fixed_ms: a whole network takes factor x (sum of its layers) + fixed_ms,
            where layers off the largest multiples count off_factor times.
        calibration: the whole networks that these three were fitted on.
        staircases: what the multiples were found from.
    """

    head: Mapping[str, Any]
    multiples: tuple[tuple[int, ...], tuple[int, ...]]
    points: Mapping[Geometry, tuple[LayerPoint, ...]]
    factor: float = 1.0
    fixed_ms: float = 0.0
    calibration: tuple[Mapping[str, Any], ...] = ()
    staircases: tuple[Staircase, ...] = ()
    off_factor: float = 1.0
    _surfaces: dict[Geometry, dict[Pair, _Surface]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Arrange the points by classes.

        Raises:
            ValueError: a grid has holes, or there is a number out of range.
        """
        if not self.points or min(self.factor, self.off_factor) <= 0 or self.fixed_ms < 0:
            raise ValueError("no layers, a factor that is not positive, or a constant below 0")
        for side in self.multiples:
            if not side or side[0] != 1 or list(side) != sorted(set(side)):
                raise ValueError(f"multiples are {list(side)}; they rise from 1")
        for geometry, points in self.points.items():
            self._surfaces[geometry] = self._arrange(geometry, points)

    def _arrange(self, geometry: Geometry, points: Sequence[LayerPoint]) -> dict[Pair, _Surface]:
        grids: dict[Pair, dict[Pair, float]] = {}
        for point in points:
            if min(point.inputs, point.outputs) < 1 or not point.ms > 0:
                raise ValueError(f"{geometry}: {point} is out of range")
            pair = (self._class_of(0, point.inputs), self._class_of(1, point.outputs))
            grids.setdefault(pair, {})[point.inputs, point.outputs] = point.ms
        found = {}
        for pair, times in grids.items():
            inputs = tuple(sorted({first for first, _ in times}))
            outputs = tuple(sorted({second for _, second in times}))
            if len(times) != len(inputs) * len(outputs):
                raise ValueError(f"{geometry}: the grid of the multiples {pair} has holes")
            rows = tuple(tuple(times[first, second] for second in outputs) for first in inputs)
            found[pair] = _Surface(inputs, outputs, rows)
        if not found:
            raise ValueError(f"{geometry} has no points")
        return found

    def _class_of(self, side: int, count: int) -> int:
        return max(multiple for multiple in self.multiples[side] if count % multiple == 0)

    def layer(self, geometry: Geometry, inputs: float, outputs: float, align: int = 1) -> Slope:
        """The time of one layer, and of what lies around it because its counts are off.

        Args:
            inputs, outputs: open channels; expected ones need not be whole numbers.
            align: what numbers of channels are multiples of that are not whole yet.

        Raises:
            KeyError: no such layer was measured.
        """
        surfaces = self._surfaces[geometry]
        if geometry.group is not None:
            per_group = geometry.group[1]
            pair = (self._likely(0, outputs / per_group, align), 1)
            slope = self._nearest(surfaces, pair).at(outputs / per_group, 1)
            slope = Slope(slope.ms, 0.0, slope.inputs / per_group)
        else:
            pair = (self._likely(0, inputs, align), self._likely(1, outputs, align))
            slope = self._nearest(surfaces, pair).at(inputs, outputs)
        # A side that nothing can be cut of has one class, and is never off.
        largest = [max(each[side] for each in surfaces) for side in (0, 1)]
        if pair[0] >= largest[0] and pair[1] >= largest[1]:
            return slope
        off = self.off_factor
        return Slope(off * slope.ms, off * slope.inputs, off * slope.outputs)

    def _likely(self, side: int, count: float, align: int) -> int:
        whole = round(count)
        return self._class_of(side, whole if abs(count - whole) < 1e-6 and whole else align)

    def _nearest(self, surfaces: Mapping[Pair, _Surface], pair: Pair) -> _Surface:
        """The surface of these classes, or where none was measured (small layers) the next one."""

        def distance(other: Pair) -> tuple[int, Pair]:
            steps = [
                abs(side.index(mine) - side.index(theirs))
                for side, mine, theirs in zip(self.multiples, pair, other, strict=True)
            ]
            return sum(steps), other

        return surfaces[min(surfaces, key=distance)]

    def whole_ms(self, layers_ms: float) -> float:
        """The time of a network whose layers take this long together, milliseconds."""
        return self.factor * layers_ms + self.fixed_ms

    def summary(self) -> dict[str, Any]:
        """What the table says about itself, without the points; for JSON."""
        return {
            **{key: value for key, value in self.head.items() if key != "environment"},
            "multiples": {"inputs": self.multiples[0], "outputs": self.multiples[1]},
            "layers": len(self.points),
            "points": sum(len(points) for points in self.points.values()),
            "factor": self.factor,
            "off_factor": self.off_factor,
            "fixed_ms": self.fixed_ms,
            "calibration": list(self.calibration),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "what": WHAT,
            **self.head,
            "factor": self.factor,
            "off_factor": self.off_factor,
            "fixed_ms": self.fixed_ms,
            "multiples": {"inputs": self.multiples[0], "outputs": self.multiples[1]},
            "calibration": list(self.calibration),
            "layers": [
                {
                    "layer": str(geometry),
                    "geometry": geometry.as_dict(),
                    "points": [[p.inputs, p.outputs, p.ms] for p in points],
                }
                for geometry, points in self.points.items()
            ],
            "staircases": [asdict(staircase) for staircase in self.staircases],
        }

    def write(self, path: Path) -> None:
        """Write the table, in place of an older one only when it is whole."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(_one_layer_a_line(self.as_dict()))
        os.replace(partial, path)


def _one_layer_a_line(document: dict[str, Any]) -> str:
    lines = []
    for key, value in document.items():
        text = json.dumps(value, allow_nan=False)
        if key in ("layers", "staircases", "calibration"):
            entries = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value)
            text = f"[\n  {entries}\n ]" if value else "[]"
        lines.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_latency_table(path: Path | str) -> LatencyTable:
    """The table in a file.

    Raises:
        ConfigError: there is none, or what is there is no latency table.
    """
    try:
        document = parse_strict(Path(path).read_bytes(), _LARGEST_FILE)
    except OSError as error:
        raise ConfigError(
            f"the latency table {path} cannot be read ({error.strerror}); make one with: "
            f"polarprune profile MODEL --out {path}"
        ) from None
    except ValueError as error:
        raise _no_table(path, str(error)) from None
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise _no_table(path, what) from None


def _no_table(path: Path | str, reason: str) -> ConfigError:
    return ConfigError(f"{path} is no latency table: {reason}; make one with: polarprune profile")


def _from_document(document: Any) -> LatencyTable:
    if document["what"] != WHAT or document["schema"] != SCHEMA:
        raise ValueError(f"it is {document['what']!r} of schema {document['schema']!r}")
    own = (
        "schema", "what", "factor", "off_factor", "fixed_ms", "multiples", "calibration", "layers",
        "staircases",
    )  # fmt: skip
    multiples = document["multiples"]
    return LatencyTable(
        head={key: v for key, v in document.items() if key not in own},
        multiples=(
            tuple(map(int, multiples["inputs"])),
            tuple(map(int, multiples["outputs"])),
        ),
        points={
            Geometry.from_dict(layer["geometry"]): tuple(
                LayerPoint(int(first), int(second), float(ms))
                for first, second, ms in layer["points"]
            )
            for layer in document["layers"]
        },
        factor=float(document["factor"]),
        off_factor=float(document.get("off_factor", 1.0)),
        fixed_ms=float(document["fixed_ms"]),
        calibration=tuple(document["calibration"]),
        staircases=tuple(_staircase(entry) for entry in document["staircases"]),
    )


def _staircase(entry: Mapping[str, Any]) -> Staircase:
    return Staircase(
        geometry=Geometry.from_dict(entry["geometry"]),
        side=str(entry["side"]),
        other=int(entry["other"]),
        counts=tuple(map(int, entry["counts"])),
        ms=tuple(map(float, entry["ms"])),
    )
