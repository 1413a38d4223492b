"""What a backend reaches on this machine: measured peaks of arithmetic and of memory.

Arithmetic by a large product and a convolution, memory by a sum of two tensors at several sizes.
Never a datasheet: the same backend, threads and precision as the network's, best of several runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from polarprune_deploy.backends.network_bytes import NetworkBytes
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner
from polarprune_deploy.backends.runners import PreparedRun
from polarprune_deploy.layers.layer_times import Roof
from polarprune_deploy.quiet_runs import timed

SIDE = 768
"""Rows and columns of the product: 2 MiB an operand in float32."""
CHANNELS, IMAGE = 128, 28
"""Of the convolution, 3 x 3: a stage of a ResNet."""
WORKING_SETS = (3 * 2**18, 3 * 2**21, 3 * 2**24, 3 * 2**26)
"""Bytes read and written by the sum: from a core's own cache to beyond any cache."""
PEAK_NS = 250_000_000


def measure_roof_onnxruntime(device: str, threads: int, precision: str) -> Roof:
    """The peaks of ONNX Runtime; half precision networks are given float32's on a CPU.

    A CPU computes fp16 in float32 anyway, and int8 has kernels of its own, whose layers may reach
    more than this roof.
    """
    dtype = np.dtype("float16" if precision == "fp16" and device != "cpu" else "float32")

    def prepare(data: bytes, shape: tuple[int, ...]) -> PreparedRun:
        network = NetworkBytes("roof", data, "", "fp32")
        runner = OnnxRuntimeRunner(network, device=device, threads=threads)
        return runner.prepare({"input": np.full(shape, 0.5, dtype)})

    products = (
        (_product(dtype), (SIDE, SIDE), SIDE**3),
        (
            _convolution(dtype),
            (1, CHANNELS, IMAGE, IMAGE),
            CHANNELS**2 * 9 * IMAGE**2,
        ),
    )
    peak = max(macs / best_ms(prepare(data, shape)) for data, shape, macs in products)
    bandwidths = []
    for size in WORKING_SETS:
        count = size // 3 // dtype.itemsize
        bandwidths.append((size, size / best_ms(prepare(_sum(dtype, count), (1, count)))))
    return Roof(peak, tuple(bandwidths))


def best_ms(call: Callable[[], object]) -> float:
    """The shortest run in a quarter of a second, three at least: a peak is what can be had."""
    best, spent, runs = timed(call), 0.0, 0
    while runs < 3 or spent * 1e6 < PEAK_NS:
        took = timed(call)
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best


def _product(dtype: Any) -> bytes:
    weight = np.full((SIDE, SIDE), 0.5, dtype)
    return _one_node("MatMul", [SIDE, SIDE], [SIDE, SIDE], {"weight": weight}, dtype)


def _convolution(dtype: Any) -> bytes:
    weight = np.full((CHANNELS, CHANNELS, 3, 3), 0.5, dtype)
    shape = [1, CHANNELS, IMAGE, IMAGE]
    return _one_node("Conv", shape, shape, {"weight": weight}, dtype, pads=[1] * 4)


def _sum(dtype: Any, count: int) -> bytes:
    """Of the input and a constant: two tensors read, one written."""
    addend = np.full((1, count), 0.5, dtype)
    return _one_node("Add", [1, count], [1, count], {"addend": addend}, dtype)


def _one_node(
    kind: str, given: list[int], got: list[int], stored: dict[str, Any], dtype: Any, **options: Any
) -> bytes:
    from onnx import helper, numpy_helper

    element = helper.np_dtype_to_tensor_dtype(dtype)
    node = helper.make_node(kind, ["input", *stored], ["logits"], **options)
    graph = helper.make_graph(
        [node],
        "roof",
        [helper.make_tensor_value_info("input", element, given)],
        [helper.make_tensor_value_info("logits", element, got)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content
