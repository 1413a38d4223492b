"""Where ONNX Runtime spends a run: its own profile, read back as kernels of the network's layers.

Its optimiser fuses (Conv, Add and Relu become one node) and changes the layout (NCHWc blocks of 8
or 16 channels, with ReorderInput and ReorderOutput nodes where a neighbour cannot take them). Names
lead back: a fused node keeps the convolution's name, and one in blocks is named for the value it
writes, `relu_1_output_nchwc`. What leads nowhere, such as a reorder, stays a kernel of no layer.

A profiled node costs more than an unprofiled one, by the writing of its record; what, is measured
with a chain of nodes that do next to nothing, and taken off each kernel.
"""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from polarprune.errors import BackendUnavailable, ParityError
from polarprune_deploy.backends.network_bytes import NetworkBytes
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner
from polarprune_deploy.backends.runners import Array, Runner
from polarprune_deploy.layers.layer_times import Kernel
from polarprune_deploy.layers.layers_onnx import OnnxLayers
from polarprune_deploy.quiet_runs import timed

CHAIN = 48
"""Nodes of the chain that measures what a node costs beside its work."""
_KERNEL_TIME = "_kernel_time"
# On a CPU half precision is computed in float32, behind casts that are put in and taken out again.
_CAST = "InsertedPrecisionFreeCast_"
_REPEATED = re.compile(r"_token_\d+$")


class ProfiledRunner(OnnxRuntimeRunner):
    """A session that records each node; `kernels` ends it and reads the record."""

    def __init__(self, network: NetworkBytes, *, device: str = "cpu", threads: int | None = None):
        self._folder = TemporaryDirectory(prefix="polarprune-profile-")
        try:
            super().__init__(network, device=device, threads=threads)
        except BaseException:
            self._folder.cleanup()
            raise

    def _session_options(self) -> Any:
        options = super()._session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        return options

    def events(self) -> list[dict[str, Any]]:
        """End profiling; the events of all runs so far, in their order. The file is gone then."""
        file = Path(self._open().end_profiling())
        events: list[dict[str, Any]] = json.loads(file.read_text())
        self.close()
        return events

    def close(self) -> None:
        """Free the session and its record."""
        super().close()
        self._folder.cleanup()


@dataclass(frozen=True)
class ProfiledRun:
    """One run: its nodes in the order they ran (name, operator, ms), and the whole of it, ms."""

    nodes: tuple[tuple[str, str, float], ...]
    ms: float


def read_profile(events: Sequence[Mapping[str, Any]]) -> list[ProfiledRun]:
    """The runs in a profile, in their order.

    Raises:
        BackendUnavailable: it holds no run with nodes; this onnxruntime writes another form.
    """
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith(_KERNEL_TIME)),
        key=lambda e: e["ts"],
    )
    found, at = [], 0
    for run in runs:
        end = run["ts"] + run["dur"]
        mine = []
        while at < len(nodes) and nodes[at]["ts"] <= end:
            if nodes[at]["ts"] >= run["ts"]:
                node = nodes[at]
                name = str(node["name"]).removesuffix(_KERNEL_TIME)
                mine.append((name, str(node["args"].get("op_name", "?")), node["dur"] / 1e3))
            at += 1
        found.append(ProfiledRun(tuple(mine), run["dur"] / 1e3))
    if not any(run.nodes for run in found):
        raise BackendUnavailable(
            "the profile of this onnxruntime holds no node times; install onnxruntime 1.24 or newer"
        )
    return found


def kernels_of(runs: Sequence[ProfiledRun], layers: OnnxLayers, record_ms: float) -> list[Kernel]:
    """Each node's median over the runs, less what recording it costs, and its layer."""
    times: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for name, operator, ms in run.nodes:
            times.setdefault((name, operator), []).append(ms)
    return [
        Kernel(name, operator, layer_of(name, layers), max(0.0, median(each) - record_ms))
        for (name, operator), each in times.items()
    ]


def layer_of(node: str, layers: OnnxLayers) -> str | None:
    """The layer that a node of the optimised graph computes, by its name."""
    plain = _REPEATED.sub("", node).removeprefix(_CAST)
    if plain in layers.of_node:
        return layers.of_node[plain]
    if plain.endswith("_nchwc"):
        plain = plain.removesuffix("_nchwc")
        return layers.of_value.get(plain) or layers.of_node.get(plain)
    return layers.of_node.get(plain.removesuffix("_quant"))


@dataclass(frozen=True)
class NodeCost:
    """What a node costs beside its work: in any run (`launch_ms`), and more while recorded."""

    launch_ms: float
    record_ms: float


def measure_node_cost(device: str, threads: int, runs: int = 200) -> NodeCost:
    """Time a chain of nodes on one number, with and without the profiler."""
    network = NetworkBytes("chain", _chain(CHAIN), "", "fp32")
    with_one = NetworkBytes("chain", _chain(1), "", "fp32")
    import numpy as np

    inputs = {"input": np.ones((1, 1), np.float32)}
    plain = [
        OnnxRuntimeRunner(each, device=device, threads=threads) for each in (with_one, network)
    ]
    profiled = ProfiledRunner(network, device=device, threads=threads)
    calls = [runner.prepare(inputs) for runner in (*plain, profiled)]
    times: list[list[float]] = [[], [], []]
    for _ in range(runs):
        for call, each in zip(calls, times, strict=True):
            each.append(timed(call))
    recorded = read_profile(profiled.events())[-runs:]
    for runner in plain:
        runner.close()
    launch = max(0.0, (median(times[1]) - median(times[0])) / (CHAIN - 1))
    inside = median(ms for run in recorded for _, _, ms in run.nodes)
    return NodeCost(launch, max(0.0, inside - launch))


def require_onnxruntime(runner: Runner) -> OnnxRuntimeRunner:
    """The runner, if its nodes can be timed.

    Raises:
        BackendUnavailable: another backend, or a device whose nodes onnxruntime does not time.
    """
    if not isinstance(runner, OnnxRuntimeRunner):
        raise BackendUnavailable(
            f"--explain reads layer times of onnxruntime, got {runner.backend}; "
            "use --backend onnxruntime"
        )
    if runner.device != "cpu":
        raise BackendUnavailable(
            "on a GPU onnxruntime's profile has the time to launch a node and not the node's own; "
            "explain on --device cpu, or with --backend torch"
        )
    return runner


def check_same_outputs(original: Runner, padded: Runner, inputs: Mapping[str, Array]) -> None:
    """Hold a padded network against what it was made from.

    Raises:
        ParityError: it computes something else, so that its time means nothing.
    """
    import numpy as np

    expected, got = original.run(inputs), padded.run(inputs)
    for name, wanted in expected.items():
        here = got[name]
        limit = 1e-3 * max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
        if here.shape != wanted.shape or not np.abs(here - wanted).max(initial=0.0) <= limit:
            raise ParityError(
                f"padded to other channel counts, {original.name} differs in {name}; report this"
            )


def _chain(nodes: int) -> bytes:
    """Alternating Neg and Exp, which no optimiser folds into one."""
    onnx: Any = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = ["input", *(f"value_{i}" for i in range(nodes - 1)), "logits"]
    chain = [
        helper.make_node(("Neg", "Exp")[i % 2], [names[i]], [names[i + 1]], name=f"node_{i}")
        for i in range(nodes)
    ]
    ends = [helper.make_tensor_value_info(name, kind, [1, 1]) for name in (names[0], names[-1])]
    graph = helper.make_graph(chain, "chain", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content
