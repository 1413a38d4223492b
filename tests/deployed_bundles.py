"""Bundles of each kind that `polarprune deploy` must tell apart, and a disk that fills up."""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polarprune.manifest import (
    BatchProfile,
    EngineInfo,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    write_manifest,
)
from polarprune_export.engine_description import fingerprint_of

ENGINE_BYTES = b"an engine that is only bytes"


def convolution(
    batch: str | int = "batch",
    side: str | int = 8,
    kind: int = TensorProto.FLOAT,
    means: Mapping[str, tuple[int, ...]] = MappingProxyType({"logits": (2, 3)}),
) -> onnx.ModelProto:
    """A convolution of 3 channels to 4, and means of it: the outputs, each over its axes."""
    weight = np.linspace(-1, 1, 4 * 3 * 9).reshape(4, 3, 3, 3).astype(np.float32)
    stored = numpy_helper.from_array(weight, "weight")
    if kind == TensorProto.BFLOAT16:
        raw = (weight.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        stored = helper.make_tensor("weight", kind, weight.shape, raw, raw=True)
    nodes = [helper.make_node("Conv", ["input", "weight"], ["c"], "conv", pads=[1] * 4)]
    weights, outputs = [stored], []
    for name, axes in means.items():
        weights.append(numpy_helper.from_array(np.array(axes, np.int64), f"{name}_axes"))
        nodes.append(
            helper.make_node("ReduceMean", ["c", f"{name}_axes"], [name], name, keepdims=0)
        )
        shape = [size for axis, size in enumerate((batch, 4, side, side)) if axis not in axes]
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    image = helper.make_tensor_value_info("input", kind, [batch, 3, side, side])
    graph = helper.make_graph(nodes, "convolution", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def write_bundle_of(folder: Path, model: onnx.ModelProto, **changes: Any) -> Path:
    """A bundle of the model, its tensors read off the graph; `changes` are of the manifest.

    With `engine` an EngineInfo, its file is written and its fingerprint filled in.
    """
    folder.mkdir(parents=True)
    contents = {"model.onnx": model.SerializeToString()}
    if (engine := changes.get("engine")) is not None:
        contents[engine.file] = ENGINE_BYTES
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {name: FileEntry.of(content) for name, content in contents.items()}
    if engine is not None:
        fingerprint = fingerprint_of(engine, files["model.onnx"].sha256)
        changes["engine"] = dataclasses.replace(engine, fingerprint=fingerprint)
    manifest = Manifest(
        name="net",
        precision="fp32",
        base={},
        inputs=tensors(model.graph.input),
        outputs=tensors(model.graph.output),
        preprocessing=None,
        classes=(),
        batch=BatchProfile(1, 4, 16),
        engine=None,
        certificate=(),
        real_images="none",
        accuracy=None,
        tools={},
        files=files,
    )
    write_manifest(dataclasses.replace(manifest, **changes), folder)
    return folder


def tensors(values: Any) -> tuple[TensorSpec, ...]:
    """The specifications of a graph's inputs or outputs."""
    kinds = {TensorProto.FLOAT: "float32", TensorProto.BFLOAT16: "bfloat16"}
    return tuple(
        TensorSpec(
            value.name,
            kinds[value.type.tensor_type.elem_type],
            tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def engine_info(runtime: str = "tensorrt", **changes: Any) -> EngineInfo:
    """An engine of `convolution()`."""
    info = EngineInfo(
        file=f"model.{runtime}.engine",
        runtime=runtime,
        version="11.4.0.106",
        runs_on="NVIDIA L4 (compute capability 8.9) with TensorRT 11.4.0.106",
        compute_capabilities=("8.9",),
        profiles=(BatchProfile(1, 1, 1), BatchProfile(1, 4, 16)),
        inputs=(TensorSpec("input", "float32", (-1, 3, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", (-1, 4)),),
        gpu="NVIDIA L4",
    )
    return dataclasses.replace(info, **changes)


def preprocessing(side: int = 8) -> Preprocessing:
    return Preprocessing(side, side, side, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file's content, and None for every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


WRITES = (
    (Path, "write_bytes"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "rename"),
    (os, "replace"),
)


@contextmanager
def failing_disk(
    monkeypatch: pytest.MonkeyPatch, after: int, seen: Callable[[], None] = lambda: None
) -> Iterator[list[str]]:
    """A disk that is full from the write number `after` on; `seen` is called before each one."""
    writes: list[str] = []

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            seen()
            writes.append(name)
            if len(writes) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return original(*args, **options)

        return write

    with monkeypatch.context() as patch:
        for owner, name in WRITES:
            patch.setattr(owner, name, counting(name, getattr(owner, name)))
        yield writes
