"""A whole bundle of a tiny network, made in milliseconds without torch."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polarprune.manifest import (
    Accuracy,
    BatchProfile,
    CertificateLink,
    EngineInfo,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    write_manifest,
)
from polarprune_export.engine_description import fingerprint_of
from polarprune_export.onnx_session import open_session, run_session
from polarprune_export.parity_samples import normalise_pixels, pack_samples
from polarprune_export.probes import Probe

SIDE, CLASSES = 8, 3
ENGINE = "model.tensorrt_rtx.engine"
PREPROCESSING = Preprocessing(SIDE, SIDE, SIDE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def small_model(bias: float = 0.0, batch: int | str = "batch") -> onnx.ModelProto:
    """A residual block with a slice and a pad for its shortcut, a small U, and a linear layer.

    Args:
        bias: is added to every output, so that it can be seen which model gave it.
        batch: a number where the network takes batches of one size alone.
    """
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def numbers(name: str, *values: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    make = helper.make_node
    nodes = [
        make("Conv", ["input", "w0", "b0"], ["c0"], "conv_0", pads=[1] * 4),
        make("Relu", ["c0"], ["r0"], "relu_0"),
        make("Conv", ["r0", "w1"], ["c1"], "conv_1", pads=[1] * 4, strides=[2, 2]),
        make("Slice", ["r0", "from", "to", "sides", "steps"], ["half"], "slice"),
        make("Pad", ["half", "pads", ""], ["wide"], "pad", mode="constant"),
        make("Add", ["c1", "wide"], ["s"], "add"),
        make("Relu", ["s"], ["r1"], "relu_1"),
        make("MaxPool", ["r1"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("ConvTranspose", ["p", "w2"], ["t"], "up", kernel_shape=[2, 2], strides=[2, 2]),
        make("Resize", ["p", "", "scales"], ["z"], "resize", mode="nearest"),
        make("Concat", ["r1", "t", "z"], ["cat"], "cat", axis=1),
        make("BatchNormalization", ["cat", "g", "g", "g", "v"], ["n"], "norm", epsilon=1e-5),
        make("Sigmoid", ["n"], ["a"], "gate_of_swish"),
        make("Mul", ["n", "a"], ["q"], "mul"),
        make("ReduceMean", ["q", "axes"], ["m4"], "mean", keepdims=1),
        make("Reshape", ["m4", "flat"], ["m"], "flatten"),
        make("Gemm", ["m", "w3", "b3"], ["logits"], "head", transB=1),
    ]
    weights = [
        *(weight("w0", 4, 3, 3, 3), weight("b0", 4), weight("w1", 6, 4, 3, 3)),
        *(weight("w2", 6, 2, 2, 2), weight("w3", CLASSES, 14), weight("b3", CLASSES)),
        *(weight("g", 14), numpy_helper.from_array(np.ones(14, np.float32), "v")),
        *(numbers("from", 0, 0), numbers("to", 8, 8), numbers("sides", 2, 3)),
        *(numbers("steps", 2, 2), numbers("pads", 0, 1, 0, 0, 0, 1, 0, 0)),
        *(numbers("axes", 2, 3), numbers("flat", -1, 14)),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    (shift,) = [weight for weight in weights if weight.name == "b3"]
    shift.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(shift) + np.float32(bias), "b3"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_small_bundle(
    folder: Path, bias: float = 0.0, *, with_engine: bool = True, batch: int | None = None
) -> Path:
    """The bundle, with stored samples of both kinds and an engine that is only bytes.

    Args:
        bias, batch: of `small_model`.
    """
    folder.mkdir(parents=True)
    model = small_model(bias, batch or "batch").SerializeToString()
    contents = {"model.onnx": model, "parity.safetensors": _samples(model, batch)}
    if with_engine:
        contents[ENGINE] = np.random.default_rng(1).bytes(512)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {name: FileEntry.of(content) for name, content in contents.items()}
    inputs = (TensorSpec("input", "float32", (batch or -1, 3, SIDE, SIDE)),)
    outputs = (TensorSpec("logits", "float32", (batch or -1, CLASSES)),)
    engine = EngineInfo(
        file=ENGINE,
        runtime="tensorrt_rtx",
        version="1.7.1.116",
        runs_on="GeForce/RTX cards",
        compute_capabilities=("8.6", "8.9"),
        profiles=(BatchProfile(1, 1, 1), BatchProfile(1, 4, 8)),
        inputs=inputs,
        outputs=outputs,
    )
    fingerprint = fingerprint_of(engine, files["model.onnx"].sha256)
    manifest = Manifest(
        name="small",
        precision="fp32",
        base={"model": "small"},
        inputs=inputs,
        outputs=outputs,
        preprocessing=PREPROCESSING,
        classes=("a", "b", "c"),
        batch=BatchProfile(1, 4, 8) if batch is None else BatchProfile(batch, batch, batch),
        engine=dataclasses.replace(engine, fingerprint=fingerprint) if with_engine else None,
        certificate=(
            CertificateLink(
                *("onnxruntime (float32)", "torch (float64)", "random", 4),
                *(1e-5, 1e-7, 1e-7, 1.0, True),
            ),
        ),
        real_images="3 test images",
        accuracy=Accuracy("noise", 100, 0.5, "onnxruntime"),
        tools={"onnx": onnx.__version__},
        files=files,
    )
    write_manifest(manifest, folder)
    return folder


def _samples(model: bytes, batch: int | None) -> bytes:
    """Four random inputs and three real ones, with what ONNX Runtime makes of them."""
    session = open_session(model, threads=1)

    def outputs(images: np.ndarray) -> list[np.ndarray]:
        if batch is None:
            return run_session(session, images, chunk=8)
        filled = np.zeros((batch, *images.shape[1:]), np.float32)
        filled[: len(images)] = images
        return [found[: len(images)] for found in run_session(session, filled, chunk=batch)]

    generator = np.random.default_rng(1)
    random = generator.standard_normal((4, 3, SIDE, SIDE)).astype(np.float32)
    pixels = generator.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    images = normalise_pixels(pixels, PREPROCESSING)
    return pack_samples(
        [
            Probe("random", None, random, outputs(random)),
            Probe("real", pixels, images, outputs(images)),
        ]
    )
