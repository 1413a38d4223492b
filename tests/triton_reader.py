"""A model's folder as Triton takes it: its client's reading, its warm-ups, its refusals."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as theirs


def read_config(model: Path) -> theirs.ModelConfig:
    """As Triton's own client reads it."""
    return text_format.Parse((model / "config.pbtxt").read_text(), theirs.ModelConfig())


def without_parameters(config: theirs.ModelConfig) -> theirs.ModelConfig:
    plain = theirs.ModelConfig()
    plain.CopyFrom(config)
    plain.ClearField("parameters")
    return plain


def parameters(config: theirs.ModelConfig) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def run_warm_ups(model: Path, version: int) -> list[int]:
    """Do in ONNX Runtime what Triton does before it is ready; the batch sizes."""
    config = read_config(model)
    path = model / str(version) / config.default_model_filename
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    sizes = []
    for sample in config.model_warmup:
        first = [sample.batch_size] if config.max_batch_size else []
        feeds = {
            name: np.zeros([*first, *data.dims], np.float32) for name, data in sample.inputs.items()
        }
        outputs = session.run([output.name for output in config.output], feeds)
        for stated, got in zip(config.output, outputs, strict=True):
            dims = [*first, *stated.dims]
            assert [d if d != -1 else s for d, s in zip(dims, got.shape, strict=True)] == [
                *got.shape
            ]
        sizes.append(sample.batch_size)
    return sizes


def refusals_of_triton(config: theirs.ModelConfig, model: Path) -> list[str]:
    """The rules of Triton's ValidateModelConfig that can be broken here, one by one."""
    broken = []
    if config.max_batch_size < 0 or not config.HasField("version_policy"):
        broken.append("batch size or version policy")
    if config.HasField("dynamic_batching") and config.max_batch_size < 1:
        broken.append("batching of a model that takes no batches")
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            broken.append(f"preferred size {size}")
    for tensor in (*config.input, *config.output):
        if not tensor.name or not tensor.data_type or not tensor.dims:
            broken.append(f"tensor {tensor.name}")
        if any(dim != -1 and dim < 1 for dim in tensor.dims):
            broken.append(f"dims of {tensor.name}")
    for output in config.output:
        if output.label_filename and not (model / output.label_filename).is_file():
            broken.append("labels")
    for group in config.instance_group:
        if group.count < 1 or (group.profile and config.platform != "tensorrt_plan"):
            broken.append("instance group")
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= max(config.max_batch_size, 1):
            broken.append(f"warm-up {sample.name}")
        if set(sample.inputs) != {tensor.name for tensor in config.input}:
            broken.append(f"inputs of warm-up {sample.name}")
    return broken
