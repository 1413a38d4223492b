"""Where TensorRT spends a run: its profiler's times, its inspector's word on what was fused.

Written against the documented interface of TensorRT 10 and 11 (IProfiler, IEngineInspector) and
never run: there was no GPU. The module is an argument, as TensorRT and TensorRT-RTX share these
names. An engine built with detailed profiling verbosity states, in each layer's `Metadata`, the
ONNX nodes it was fused from; otherwise their names are taken from the layer's own (`a + b`).
"""

import json
import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from polarprune.errors import BackendUnavailable
from polarprune_deploy.layers.layer_times import Kernel
from polarprune_deploy.layers.layers_onnx import OnnxLayers

RUNS = 20
_NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_REFORMATS = ("Reformat", "reformat")


def profile_engine(
    trt: Any, context: Any, run: Callable[[], None], runs: int = RUNS
) -> list[list[tuple[str, float]]]:
    """Names and ms of the engine's layers in each of so many runs, in the order they were reported.

    Args:
        trt: the tensorrt or tensorrt_rtx module.
        context: an IExecutionContext; its profiler is put back afterwards.
        run: one inference to the end on that context; warmed up before.
        runs: how many.

    Raises:
        BackendUnavailable: nothing was reported.
    """
    profiler, before = make_profiler(trt), context.profiler
    found: list[list[tuple[str, float]]] = []
    context.profiler = profiler
    try:
        for _ in range(runs):
            profiler.layers = []
            run()
            if not context.enqueue_emits_profile:
                context.report_to_profiler()
            found.append(profiler.layers)
    finally:
        context.profiler = before
    if not any(found):
        raise BackendUnavailable("TensorRT reported no layer times; build the engine again")
    return found


def make_profiler(trt: Any) -> Any:
    """An IProfiler that keeps what it is told, in `layers`."""

    class _Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the binding asks for this and no super()
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, float(ms)))

    return _Profiler()


def inspect_engine(trt: Any, engine: Any, context: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each engine layer's kind and the ONNX nodes in it, by name."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    stated = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = {}
    for layer in stated.get("Layers", []):
        if isinstance(layer, str):  # names only: the engine was built with less verbosity
            layers[layer] = (_kind_by_name(layer), tuple(layer.split(" + ")))
            continue
        name = str(layer["Name"])
        nodes = _NODES.findall(str(layer.get("Metadata", ""))) or name.split(" + ")
        kind = str(layer.get("LayerType", _kind_by_name(name)))
        layers[name] = ("Reformat" if kind in _REFORMATS else kind, tuple(nodes))
    return layers


def kernels_of_engine(
    runs: Sequence[Sequence[tuple[str, float]]],
    inspected: dict[str, tuple[str, tuple[str, ...]]],
    layers: OnnxLayers,
) -> list[Kernel]:
    """Each engine layer's median, and the layer with MACs it was fused from, if it is one.

    An engine layer made of several layers with MACs counts for the first; the others then show
    no time of their own.
    """
    times: dict[str, list[float]] = {}
    for run in runs:
        for name, ms in run:
            times.setdefault(name, []).append(ms)
    kernels = []
    for name, each in times.items():
        kind, nodes = inspected.get(name, (_kind_by_name(name), tuple(name.split(" + "))))
        mine = [layers.of_node[node] for node in nodes if node in layers.of_node]
        owner = mine[0] if mine and kind != "Reformat" else None
        kernels.append(Kernel(name, kind, owner, median(each)))
    return kernels


def _kind_by_name(name: str) -> str:
    return "Reformat" if name.startswith("Reformatting CopyNode") else "layer"
