"""Staircases of a network's convolutions: time over neighbouring channel counts of one side.

    python -m benchmarks.gpu staircase                    # ResNet-50, batches 1 and 64, fp16
    python -m benchmarks.gpu staircase --dry-run --network resnet20 --batches 1

What `polarprune profile` begins with (`layer_replay`): each layer with its ReLU in a CUDA graph,
the other side whole. The table says what a channel costs by the multiple that its count is of, over
one of a multiple of 32.
"""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.record_file import RecordFile
from polarprune import GatedNetwork
from polarprune.graph.geometry import Geometry
from polarprune.latency_table import Staircase
from polarprune_deploy.layers.channel_counts import CANDIDATES, find_multiples
from polarprune_deploy.layers.layer_requests import LayerRequest
from polarprune_deploy.layers.layer_timers import LayerTimer
from polarprune_deploy.layers.profiling import mixing_layers, time_staircases
from polarprune_deploy.layers.profiling_words import costs_by_class

# Two sides of 65 counts, seconds; later ones go by what was seen.
_FIRST_GUESS = 30.0


def time_convolutions(
    gated: GatedNetwork, timer: LayerTimer, record: RecordFile, deadline: Deadline,
    batches: list[int], seed: int, device: str,
) -> None:  # fmt: skip
    """Every staircase that the record lacks, one line a geometry and batch.

    Raises:
        TimeIsUp: not all fitted.
    """
    done = {
        (line["batch"], Geometry.from_dict(line["geometry"])) for line in record.all("staircase")
    }
    guess = _FIRST_GUESS
    for batch in batches:
        for geometry, layers in mixing_layers(gated.analysis.costs).items():
            if geometry.kind == "linear" or (batch, geometry) in done:
                continue
            deadline.check(guess, f"{geometry}, batch {batch}")
            left = deadline.left()

            def timed(_: str, requests: Any, batch: int = batch) -> list[float]:
                wanted: list[LayerRequest] = list(requests)
                return timer.time_layers(
                    wanted, batch=batch, seed=seed, progress=lambda *_: None
                )  # fmt: skip

            found = time_staircases({geometry: layers}, timed)
            if not found:  # no side of it may shrink
                continue
            record.add(
                "staircase", batch=batch, layer=str(geometry), geometry=geometry.as_dict(),
                device=device, precision=timer.head["precision"],
                sides=[
                    {key: value for key, value in asdict(each).items() if key != "geometry"}
                    for each in found
                ],
            )  # fmt: skip
            print(f"{geometry}, batch {batch} ({deadline.left():.0f} s left)", flush=True)
            guess = 1.5 * (left - deadline.left())


def read_staircases(record: RecordFile) -> dict[int, list[Staircase]]:
    """By batch, as they were recorded."""
    found: dict[int, list[Staircase]] = {}
    for line in record.all("staircase"):
        geometry = Geometry.from_dict(line["geometry"])
        found.setdefault(line["batch"], []).extend(
            Staircase(geometry, s["side"], s["other"], tuple(s["counts"]), tuple(s["ms"]))
            for s in line["sides"]
        )
    return found


def staircase_table(record: RecordFile) -> Table:
    """One line a staircase, one a batch for the multiples that were found."""
    multiples = (1, *CANDIDATES)
    table = Table(title=record.head["what"])
    for column in ("batch", "layer", "channels of", *map(str, multiples)):
        table.add_column(column)
    for batch, staircases in read_staircases(record).items():
        for each in staircases:
            costs = costs_by_class(each, multiples)
            cells = ["-" if cost is None else f"{cost:.2f}" for cost in costs]
            table.add_row(str(batch), str(each.geometry), each.side, *cells)
        for side in ("inputs", "outputs"):
            mine = [each for each in staircases if each.side == side]
            found = ", ".join(map(str, find_multiples(mine)[1:])) or "none"
            table.add_row(str(batch), f"multiples that make a difference: {found}", side)
    return table
