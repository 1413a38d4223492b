"""Times of single layers in ONNX Runtime: one graph of many branches, read from its own profile.

Each branch makes the layer's input from a thin image, runs the layer and its ReLU, and thins the
result again, so that the layer stands between others as it does in a network: its input was just
written, its weights were last read a whole graph ago. Conversions between layouts are left out: how
many a network needs depends on which of its layers meet, and they enter with all that lies around
the layers.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from polarprune.graph.geometry import Geometry
from polarprune_deploy.layers.layer_requests import LayerRequest, Progress

_THIN = 16  # channels before and after: a multiple of every blocked layout's block
_BRANCHES = 40  # in one graph
_UNTIMED, _TIMED = 3, 15
_PASSES = 2  # in other company and at another moment; the faster one counts
_OPSET = 18
_MINE = re.compile(r"layer\.(\d+)\.")


def time_layers(
    requests: Sequence[LayerRequest],
    *,
    batch: int,
    threads: int,
    seed: int,
    progress: Progress = lambda _done, _of: None,
) -> list[float]:
    """Milliseconds of one run of each layer, on the CPU in float32.

    Args:
        batch: images in one run.
        threads: inside one operator.
        seed: of the weights and of what is measured together.
    """
    best = [float("inf")] * len(requests)
    generator = np.random.default_rng(seed)
    by_geometry: dict[Geometry, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        by_geometry[request.geometry].append(place)
    done = 0
    for _ in range(_PASSES):
        for places in by_geometry.values():
            shuffled = generator.permutation(places).tolist()
            for start in range(0, len(shuffled), _BRANCHES):
                chosen = shuffled[start : start + _BRANCHES]
                branches = [requests[place] for place in chosen]
                for place, ms in zip(chosen, _one_graph(branches, batch, threads), strict=True):
                    best[place] = min(best[place], ms)
                done += len(chosen)
                progress(done, _PASSES * len(requests))
    return best


def _one_graph(requests: Sequence[LayerRequest], batch: int, threads: int) -> list[float]:
    import onnxruntime as ort

    with TemporaryDirectory(prefix="polarprune-profile-") as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            build_ladder(requests, batch).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        shape = _image_shape(requests[0].geometry, batch)
        image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        for _ in range(_UNTIMED + _TIMED):
            session.run(None, {"image": image})
        times = _node_times(session.end_profiling())
    found = dict.fromkeys(range(len(requests)), 0.0)
    for name, ms in times.items():
        mine = _MINE.search(name)  # fusion and layout passes put words of theirs around it
        if mine:
            found[int(mine[1])] += ms
    return list(found.values())


def _node_times(profile: str) -> dict[str, float]:
    """Median milliseconds of each node's kernel."""
    events = json.loads(Path(profile).read_text())
    os.remove(profile)
    found: dict[str, list[float]] = defaultdict(list)
    ending = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(ending):
            found[event["name"].removesuffix(ending)].append(event["dur"] / 1e3)
    return {name: _typical(times[_UNTIMED:]) for name, times in found.items()}


def _typical(times: list[float]) -> float:
    """The mean of the middle half: the profile's clock ticks in microseconds, some layers' length.

    Never 0: the shortest layers fall between two ticks.
    """
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return max(fmean(ordered[quarter : len(ordered) - quarter]), 1e-4)


def _token(place: int) -> str:
    return f"layer.{place}."


def _image_shape(geometry: Geometry, batch: int) -> tuple[int, ...]:
    if geometry.kind == "linear":
        return (batch * geometry.size[0], _THIN)
    return (batch * geometry.copies, _THIN, *geometry.size)


def build_ladder(requests: Sequence[LayerRequest], batch: int) -> ModelProto:
    """A model with one branch a layer, all from one image; they share a geometry."""
    nodes, weights, outputs = [], [], []
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> str:
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        weights.append(numpy_helper.from_array(values, name))
        return name

    geometry = requests[0].geometry
    sides = [None] * len(_image_shape(geometry, batch))
    for place, request in enumerate(requests):
        token = _token(place)
        first, second, _ = request.channels
        nodes += _thin(f"before.{place}.", "image", _THIN, first, geometry, weight)
        relu = helper.make_node(
            "Relu", [f"before.{place}.result"], [f"before.{place}.active"], name=f"before.{place}.r"
        )
        nodes.append(relu)
        nodes.append(_layer(token, f"before.{place}.active", request, weight))
        nodes.append(
            helper.make_node("Relu", [f"{token}result"], [f"{token}active"], name=f"{token}relu")
        )
        nodes += _thin(f"after.{place}.", f"{token}active", second, _THIN, geometry, weight)
        outputs.append(
            helper.make_tensor_value_info(f"after.{place}.result", TensorProto.FLOAT, sides)
        )
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, _image_shape(geometry, batch))
    graph = helper.make_graph(nodes, "ladder", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = 9  # what every ONNX Runtime since 1.16 reads
    return model


def _thin(
    token: str, source: str, inputs: int, outputs: int, geometry: Geometry, weight: Any
) -> list[Any]:
    """A 1x1 convolution, or a linear layer."""
    if geometry.kind == "linear":
        names = [source, weight(f"{token}w", inputs, outputs), weight(f"{token}b", outputs)]
        return [helper.make_node("Gemm", names, [f"{token}result"], name=f"{token}gemm")]
    ones = (1,) * len(geometry.size)
    names = [source, weight(f"{token}w", outputs, inputs, *ones), weight(f"{token}b", outputs)]
    return [helper.make_node("Conv", names, [f"{token}result"], name=f"{token}conv")]


def _layer(token: str, source: str, request: LayerRequest, weight: Any) -> Any:
    geometry = request.geometry
    inputs, outputs, groups = request.channels
    if geometry.kind == "linear":
        (node,) = _thin(token, source, inputs, outputs, geometry, weight)
        return node
    transposed = geometry.kind == "conv_transpose"
    sides = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    names = [
        source,
        weight(f"{token}w", *sides, *geometry.kernel),
        weight(f"{token}b", outputs),
    ]
    return helper.make_node(
        "ConvTranspose" if transposed else "Conv",
        names,
        [f"{token}result"],
        name=f"{token}conv",
        strides=geometry.stride,
        pads=[*geometry.padding, *geometry.padding],
        dilations=geometry.dilation,
        group=groups,
    )
