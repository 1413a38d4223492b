"""`polarprune profile`: a network's layers timed over their channel counts, on the device at hand.

First the staircases of every kind of layer, in which the multiples show that make a difference;
then for each pair of classes a grid of counts; then whole networks, dense and cut, on which the
time around the layers is fitted. What comes out is a polarprune.latency_table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.alignment import spread_decisions, uniform_decisions
from polarprune.errors import ConfigError
from polarprune.graph.geometry import Geometry
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable, LayerPoint, Staircase
from polarprune.option_values import check_range
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.layers.channel_counts import find_multiples, grid_counts, staircase_counts
from polarprune_deploy.layers.layer_requests import LayerRequest
from polarprune_deploy.layers.layer_timers import LayerTimer, choose_timer
from polarprune_deploy.layers.whole_networks import fit_sum, median_latencies

if TYPE_CHECKING:
    from torch import Tensor

    from polarprune.gates import GatedNetwork
    from polarprune.graph.sites import MixCost

Progress = Callable[[str, int, int], None]
# Of every site's channels: whole networks that the time around the layers is fitted on.
# Odd shares: halves and quarters of 64 channels are multiples of everything.
CALIBRATED = (0.77, 0.53, 0.29)


@dataclass(frozen=True)
class ProfileRequest:
    """What is measured.

    Attributes:
        batch: images in one call.
        threads: inside one operator; None takes every CPU the process may use.
        seed: of weights and of the order of measurements.
        backend: "auto", "onnxruntime" or "torch".
        device: "cpu" or "cuda".
        precision: of torch alone: "fp32", "fp16" or "bf16"; None takes fp16 on a GPU.
    """

    batch: int = 1
    threads: int | None = None
    seed: int = 0
    backend: str = "auto"
    device: str = "cpu"
    precision: str | None = None

    def timer(self) -> LayerTimer:
        """What is asked for to measure with.

        Raises:
            ConfigError: words that do not go together.
            BackendUnavailable: no GPU is here.
        """
        return choose_timer(self.backend, self.device, self.precision, self.threads)

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            ConfigError: the option is named.
        """
        check_range("--batch", self.batch, 1)
        check_range("--threads", self.threads, 1)


@dataclass(frozen=True)
class MixingLayers:
    """All layers of one geometry: what each may have of inputs and outputs.

    A side that no gate closes anything of is fixed.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fixed_inputs: bool
    fixed_outputs: bool


def profile_network(
    gated: "GatedNetwork",
    head: Mapping[str, Any],
    request: ProfileRequest,
    progress: Progress = lambda _what, _done, _of: None,
    timer: LayerTimer | None = None,
) -> LatencyTable:
    """The latency table of a gated network.

    Args:
        gated: its gates' decisions are changed.
        head: what the table says about the network.
        timer: None makes the one that the request names.

    Raises:
        ConfigError: it has no convolution and no linear layer.
    """
    layers = mixing_layers(gated.analysis.costs)
    if not layers:
        raise ConfigError("this network has no convolution and no linear layer: nothing to measure")
    chosen = timer or request.timer()

    def timed(what: str, requests: Sequence[LayerRequest]) -> list[float]:
        return chosen.time_layers(
            requests, batch=request.batch, seed=request.seed,
            progress=lambda done, of: progress(what, done, of),
        )  # fmt: skip

    staircases = time_staircases(layers, timed)
    multiples = (
        find_multiples([s for s in staircases if s.side == "inputs"]),
        find_multiples([s for s in staircases if s.side == "outputs"]),
    )
    wanted = _grid(layers, multiples)
    times = timed("layers", wanted)
    points: dict[Geometry, list[LayerPoint]] = {}
    for each, ms in zip(wanted, times, strict=True):
        points.setdefault(each.geometry, []).append(LayerPoint(each.inputs, each.outputs, ms))
    table = LatencyTable(
        head={
            **head,
            "batch": request.batch,
            **chosen.head,
            "seed": request.seed,
            "environment": describe_environment(),
        },
        multiples=multiples,
        points={geometry: tuple(found) for geometry, found in points.items()},
        staircases=tuple(staircases),
    )
    return _calibrated(gated, table, request, chosen, progress)


def mixing_layers(costs: "Sequence[MixCost]") -> dict[Geometry, MixingLayers]:
    """A network's layers by geometry."""
    found: dict[Geometry, list[tuple[int, int, bool, bool]]] = {}
    for cost in costs:
        inputs, outputs = len(cost.mix.inputs), len(cost.mix.outputs)
        fixed = not cost.reads, not cost.writes
        if cost.geometry.group is not None:
            inputs, outputs, fixed = cost.mix.groups, 1, (not cost.group_macs, True)
        found.setdefault(cost.geometry, []).append((inputs, outputs, *fixed))
    return {
        geometry: MixingLayers(
            inputs=tuple(sorted({each[0] for each in all_of})),
            outputs=tuple(sorted({each[1] for each in all_of})),
            fixed_inputs=all(each[2] for each in all_of),
            fixed_outputs=all(each[3] for each in all_of),
        )
        for geometry, all_of in found.items()
    }


def time_staircases(
    layers: Mapping[Geometry, MixingLayers],
    timed: Callable[[str, Sequence[LayerRequest]], list[float]],
) -> list[Staircase]:
    """Of each geometry and each side that may shrink, the other side whole."""
    plans: list[tuple[Geometry, str, int, list[int]]] = []
    requests: list[LayerRequest] = []
    for geometry, each in layers.items():
        inputs, outputs = max(each.inputs), max(each.outputs)
        if not each.fixed_inputs:
            counts = staircase_counts(inputs)
            plans.append((geometry, "inputs", outputs, counts))
            requests += [LayerRequest(geometry, count, outputs) for count in counts]
        if not each.fixed_outputs:
            counts = staircase_counts(outputs)
            plans.append((geometry, "outputs", inputs, counts))
            requests += [LayerRequest(geometry, inputs, count) for count in counts]
    times = iter(timed("staircases", requests))
    return [
        Staircase(geometry, side, other, tuple(counts), tuple(next(times) for _ in counts))
        for geometry, side, other, counts in plans
    ]


def _grid(
    layers: Mapping[Geometry, MixingLayers], multiples: tuple[tuple[int, ...], tuple[int, ...]]
) -> list[LayerRequest]:
    found = []
    for geometry, each in layers.items():
        fixed = each.fixed_inputs, each.fixed_outputs
        sides = [
            list(mosts) if still else grid_counts(mosts, side)
            for mosts, still, side in zip(
                (each.inputs, each.outputs), fixed, multiples, strict=True
            )
        ]
        found += [
            LayerRequest(geometry, first, second) for first in sides[0] for second in sides[1]
        ]
    return found


def _calibrated(
    gated: "GatedNetwork",
    table: LatencyTable,
    request: ProfileRequest,
    timer: LayerTimer,
    progress: Progress,
) -> LatencyTable:
    """The same table with the time around the layers fitted on whole networks."""
    # Sites keep unequal shares, as they do in the end, so that all sorts of layers meet.
    aligned = sorted({*table.multiples[0], *table.multiples[1]})
    cases = [(share, align) for share in CALIBRATED for align in aligned] if gated.sites else []
    all_decisions = [
        uniform_decisions(gated, 1.0, 1),
        *(spread_decisions(gated, *case, seed) for seed, case in enumerate(cases)),
    ]
    cases.insert(0, (1.0, 1))
    networks = [
        {site.name: each for site, each in zip(gated.sites, decisions, strict=True)}
        for decisions in all_decisions
    ]
    measured = median_latencies(
        gated, networks, timer, batch=request.batch, seed=request.seed,
        progress=lambda done, of: progress("whole networks", done, of),
    )  # fmt: skip
    parts = _on_and_off(gated, table, all_decisions)
    (factor, off), fixed = fit_sum(parts, measured)
    fitted = replace(
        table, factor=factor or off, off_factor=off / factor if factor and off else 1.0,
        fixed_ms=fixed,
    )  # fmt: skip
    circuit = LatencyCircuit(gated.analysis, gated.circuit, fitted)
    calibration = tuple(
        {
            "share": share,
            "align": align,
            "macs": gated.macs_of(decisions),
            "layers_ms": sum(part),
            "ms": ms,
            "predicted_ms": circuit.exact_ms(decisions),
        }
        for (share, align), decisions, part, ms in zip(
            cases, all_decisions, parts, measured, strict=True
        )
    )
    return replace(fitted, calibration=calibration)


def _on_and_off(
    gated: "GatedNetwork", table: LatencyTable, all_decisions: "Sequence[list[Tensor]]"
) -> list[tuple[float, float]]:
    """Per network the time of its layers on the largest multiples, and of the others, alone."""
    once, twice = (
        LatencyCircuit(
            gated.analysis, gated.circuit, replace(table, factor=1.0, off_factor=off, fixed_ms=0.0)
        )
        for off in (1.0, 2.0)
    )
    found = []
    for decisions in all_decisions:
        whole = once.exact_ms(decisions)
        off = twice.exact_ms(decisions) - whole
        found.append((whole - off, off))
    return found


def profile(
    x: str,
    out: Path,
    request: ProfileRequest,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    progress: Progress = lambda _what, _done, _of: None,
) -> LatencyTable:
    """Measure the network of a run or model, and write its table.

    Args:
        x: a model's name, or a run folder: its base architecture is measured.
        out: the table's file; an older one is replaced.

    Raises:
        ConfigError, RunFolderError, Refused: what is wrong with which argument.
        BackendUnavailable: the device, or ONNX Runtime, is not here.
    """
    import torch

    from polarprune.attaching import attach_gates
    from polarprune_export.export_sources import open_source

    timer = request.timer()
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    source = open_source(x, data=None, weights=None, num_classes=num_classes, image_size=image_size)
    torch.manual_seed(request.seed)
    network = source.unpruned().eval()
    gated = attach_gates(network, torch.zeros(1, *source.input_shape))
    head = {"model": source.base.get("model", source.name), "input_shape": list(source.input_shape)}
    table = profile_network(gated, head, request, progress, timer)
    table.write(out)
    return table
