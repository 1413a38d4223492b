"""Triton configurations of each kind of bundle, read with Triton's client, run in ONNX Runtime."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from deployed_bundles import (
    ENGINE_BYTES,
    convolution,
    engine_info,
    preprocessing,
    tree,
    write_bundle_of,
)
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from triton_reader import (
    parameters,
    read_config,
    refusals_of_triton,
    run_warm_ups,
    without_parameters,
)
from tritonclient.grpc import model_config_pb2 as theirs

from polarprune.errors import ConfigError
from polarprune.manifest import BatchProfile, TensorSpec, read_manifest
from polarprune_deploy.fleet.triton_config import TritonOptions
from polarprune_deploy.fleet.triton_repository import write_triton_repository

WARM_UPS = """
model_warmup {
  name: "batch_1"
  batch_size: 1
  inputs { key: "input" value { data_type: TYPE_FP32 dims: [ 3, 8, 8 ] zero_data: true } }
}
model_warmup {
  name: "batch_4"
  batch_size: 4
  inputs { key: "input" value { data_type: TYPE_FP32 dims: [ 3, 8, 8 ] zero_data: true } }
}
"""

ONNX_CONFIG = (
    """
name: "small"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 8
input { name: "input" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
version_policy { latest { num_versions: 1 } }
instance_group { count: 1 kind: KIND_AUTO }
dynamic_batching {
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 1000000
    allow_timeout_override: true
    max_queue_size: 256
  }
}
"""
    + WARM_UPS
)


def test_the_onnx_file_of_a_bundle_is_written_with_what_the_manifest_says(
    small: Path, tmp_path: Path
) -> None:
    answer = write_triton_repository(small, tmp_path / "repository")
    model = tmp_path / "repository" / "small"
    meant = text_format.Parse(ONNX_CONFIG, theirs.ModelConfig())
    assert without_parameters(read_config(model)) == meant
    assert (model / "1" / "model.onnx").read_bytes() == (small / "model.onnx").read_bytes()
    assert (model / "labels.txt").read_text() == "a\nb\nc\n"
    assert sorted(tree(model)) == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert run_warm_ups(model, 1) == [1, 4]
    assert answer["file"] == str(model / "1" / "model.onnx")
    assert (answer["model"], answer["version"], answer["max_batch_size"]) == ("small", 1, 8)


def test_an_rtx_engine_is_said_to_be_no_plan(small: Path, tmp_path: Path) -> None:
    answer = write_triton_repository(small, tmp_path / "repository")
    assert answer["backend"] == "onnxruntime"
    (remark,) = answer["remarks"]
    assert "not a Triton plan" in remark
    assert "ONNX" in remark
    with pytest.raises(ConfigError, match=r"--backend tensorrt .*tensorrt_rtx alone"):
        write_triton_repository(small, tmp_path / "other", options=TritonOptions("tensorrt"))


PLAN_CONFIG = (
    """
name: "net"
platform: "tensorrt_plan"
backend: "tensorrt"
default_model_filename: "model.plan"
max_batch_size: 16
input { name: "input" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "logits" data_type: TYPE_FP32 dims: [ 4 ] }
version_policy { latest { num_versions: 1 } }
instance_group { count: 2 kind: KIND_GPU profile: [ "0", "1" ] }
optimization { cuda { graphs: true } }
dynamic_batching {
  preferred_batch_size: [ 4 ]
  max_queue_delay_microseconds: 300
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 50000
    allow_timeout_override: true
    max_queue_size: 64
  }
}
"""
    + WARM_UPS
)


def test_an_enterprise_engine_becomes_a_plan_with_all_its_profiles(
    plan: Path, tmp_path: Path
) -> None:
    options = TritonOptions(instances=2, max_queue_size=64, timeout_ms=50, queue_delay_us=300)
    answer = write_triton_repository(plan, tmp_path / "repository", options=options)
    model = tmp_path / "repository" / "net"
    meant = text_format.Parse(PLAN_CONFIG, theirs.ModelConfig())
    assert without_parameters(read_config(model)) == meant
    assert (model / "1" / "model.plan").read_bytes() == ENGINE_BYTES
    assert answer["runs_on"].startswith("NVIDIA L4")
    (remark,) = answer["remarks"]
    assert "TensorRT 11.4.0.106" in remark


def test_the_onnx_file_can_be_served_in_an_engines_place(plan: Path, tmp_path: Path) -> None:
    options = TritonOptions("onnxruntime", "cpu")
    answer = write_triton_repository(plan, tmp_path / "repository", options=options)
    config = read_config(tmp_path / "repository" / "net")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert not config.HasField("optimization")
    assert (answer["backend"], answer["remarks"]) == ("onnxruntime", [])


def test_a_version_compatible_plan_names_the_servers_flag(tmp_path: Path) -> None:
    info = engine_info(flags=("version",))
    bundle = write_bundle_of(tmp_path / "bundle", convolution(), engine=info)
    remarks = write_triton_repository(bundle, tmp_path / "repository")["remarks"]
    assert any("--backend-config=tensorrt,version-compatible=true" in r for r in remarks)


def test_a_plan_that_takes_no_single_image_says_so(tmp_path: Path) -> None:
    info = engine_info(profiles=(BatchProfile(4, 8, 16),))
    bundle = write_bundle_of(
        tmp_path / "bundle", convolution(), engine=info, batch=BatchProfile(4, 8, 16)
    )
    remarks = write_triton_repository(bundle, tmp_path / "repository")["remarks"]
    assert any("takes 4 images or more" in remark for remark in remarks)
    config = read_config(tmp_path / "repository" / "net")
    assert [sample.batch_size for sample in config.model_warmup] == [4, 8]
    assert not config.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize(("size", "words"), [(8, "8 images"), (1, "one image")])
def test_a_fixed_batch_is_served_as_it_is(size: int, words: str, tmp_path: Path) -> None:
    bundle = write_bundle_of(
        tmp_path / "bundle",
        convolution(batch=size),
        batch=BatchProfile(size, size, size),
        classes=("a", "b", "c", "d"),
    )
    answer = write_triton_repository(bundle, tmp_path / "repository")
    model = tmp_path / "repository" / "net"
    config = read_config(model)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [size, 3, 8, 8]
    assert list(config.output[0].dims) == [size, 4]
    assert run_warm_ups(model, 1) == [1]
    assert refusals_of_triton(config, model) == []
    # Eight rows of scores are one long row to Triton, for which there are no labels.
    assert (model / "labels.txt").exists() == (size == 1)
    assert any(words in remark for remark in answer["remarks"])


def test_an_output_that_is_one_for_the_whole_batch_is_not_batched(tmp_path: Path) -> None:
    model = convolution(means={"logits": (2, 3), "total": (0, 2, 3)})
    bundle = write_bundle_of(tmp_path / "bundle", model)
    answer = write_triton_repository(bundle, tmp_path / "repository")
    config = read_config(tmp_path / "repository" / "net")
    assert config.max_batch_size == 0
    assert [list(output.dims) for output in config.output] == [[-1, 4], [4]]
    assert list(config.input[0].dims) == [-1, 3, 8, 8]
    assert list(config.model_warmup[0].inputs["input"].dims) == [4, 3, 8, 8]
    assert run_warm_ups(tmp_path / "repository" / "net", 1) == [1]
    assert any("joins no requests" in remark for remark in answer["remarks"])


def test_one_number_an_image_is_reshaped_to_no_dimension(tmp_path: Path) -> None:
    bundle = write_bundle_of(tmp_path / "bundle", convolution(means={"out": (1, 2, 3)}))
    write_triton_repository(bundle, tmp_path / "repository")
    (output,) = read_config(tmp_path / "repository" / "net").output
    assert list(output.dims) == [1]
    assert output.HasField("reshape")
    assert not output.reshape.shape


def test_a_free_height_and_width_stay_free(tmp_path: Path) -> None:
    model = convolution(side="side")
    known = write_bundle_of(tmp_path / "known", model, preprocessing=preprocessing(12))
    write_triton_repository(known, tmp_path / "repository")
    config = read_config(tmp_path / "repository" / "net")
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["input"].dims) == [3, 12, 12]
    assert run_warm_ups(tmp_path / "repository" / "net", 1) == [1, 4]
    unknown = write_bundle_of(tmp_path / "unknown", model)
    answer = write_triton_repository(unknown, tmp_path / "other")
    assert not read_config(tmp_path / "other" / "net").model_warmup
    assert any("no warm-up" in remark for remark in answer["remarks"])


def test_bf16_is_served_on_gpus_alone(tmp_path: Path) -> None:
    model = convolution(kind=TensorProto.BFLOAT16)
    bundle = write_bundle_of(tmp_path / "bundle", model, precision="bf16")
    answer = write_triton_repository(bundle, tmp_path / "repository")
    config = read_config(tmp_path / "repository" / "net")
    assert config.input[0].data_type == theirs.TYPE_BF16
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert any("bf16 runs on GPUs alone" in remark for remark in answer["remarks"])
    for options in (TritonOptions(device="cpu"), TritonOptions(accelerate=True)):
        with pytest.raises(ConfigError, match="bf16"):
            write_triton_repository(bundle, tmp_path / "other", options=options)


def test_acceleration_is_asked_for_in_the_words_of_tritons_onnx_runtime(
    small: Path, tmp_path: Path
) -> None:
    write_triton_repository(small, tmp_path / "repository", options=TritonOptions(accelerate=True))
    config = read_config(tmp_path / "repository" / "small")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP32",
        "trt_profile_min_shapes": "input:1x3x8x8",
        "trt_profile_opt_shapes": "input:4x3x8x8",
        "trt_profile_max_shapes": "input:8x3x8x8",
    }
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU


def test_a_class_name_with_a_line_break_keeps_the_later_labels_in_place(tmp_path: Path) -> None:
    bundle = write_bundle_of(
        tmp_path / "bundle", convolution(), classes=("a\nb", "grüner Tee", "", "d")
    )
    write_triton_repository(bundle, tmp_path / "repository")
    labels = tmp_path / "repository" / "net" / "labels.txt"
    assert labels.read_text(encoding="utf-8") == "a b\ngrüner Tee\n\nd\n"


def test_each_version_says_where_it_is_from(small: Path, tmp_path: Path) -> None:
    write_triton_repository(small, tmp_path / "repository")
    said = parameters(read_config(tmp_path / "repository" / "small"))
    manifest = (small / "manifest.json").read_bytes()
    assert said["polarprune.1.manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert said["polarprune.1.model_sha256"] == read_manifest(small).files["model.onnx"].sha256
    assert "onnxruntime (float32) against torch (float64)" in said["polarprune.1.certificate"]
    assert said["polarprune.precision"] == "fp32"


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Batch sizes, sides and classes of a bundle, and an engine or none."""
    low, opt, high = sorted(draw(st.tuples(*[st.integers(1, 64)] * 3)))
    fixed = draw(st.booleans())
    if fixed:
        low = opt = high
    batch = BatchProfile(low, opt, high)
    engine = None
    first = high if fixed else -1
    if (runtime := draw(st.sampled_from(["none", "tensorrt", "tensorrt_rtx"]))) != "none":
        one = (BatchProfile(1, 1, 1),) if low == 1 < high else ()
        engine = engine_info(
            runtime,
            profiles=(*one, batch),
            inputs=(TensorSpec("input", "float32", (first, 3, 8, 8)),),
            outputs=(TensorSpec("logits", "float32", (first, 4)),),
        )
    return {
        "model": convolution(high if fixed else "batch", draw(st.sampled_from([8, "side"]))),
        "batch": batch,
        "engine": engine,
        "classes": tuple(f"class {i}" for i in range(draw(st.integers(0, 4)))),
        "preprocessing": draw(st.sampled_from([None, preprocessing()])),
    }


@settings(max_examples=40)
@given(facts=manifests())
def test_whatever_the_bundle_triton_has_nothing_to_refuse(
    facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("any")
    facts = dict(facts)
    bundle = write_bundle_of(place / "bundle", facts.pop("model"), **facts)
    answer = write_triton_repository(bundle, place / "repository")
    model = place / "repository" / "net"
    config = read_config(model)
    assert refusals_of_triton(config, model) == []
    is_plan = facts["engine"] is not None and facts["engine"].runtime == "tensorrt"
    assert (config.platform == "tensorrt_plan") is is_plan
    fixed = facts["batch"].min == facts["batch"].max and config.input[0].dims[0] != 3
    assert config.max_batch_size == (0 if fixed else facts["batch"].max)
    if not is_plan:
        assert len(run_warm_ups(model, answer["version"])) == len(config.model_warmup)
    shutil.rmtree(place)
