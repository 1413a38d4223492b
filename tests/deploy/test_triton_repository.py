"""Triton repositories: read with Triton's own client, run in ONNX Runtime, never half-written."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from deployed_bundles import (
    ENGINE_BYTES,
    convolution,
    engine_info,
    failing_disk,
    preprocessing,
    tree,
    write_bundle_of,
)
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from small_bundles import write_small_bundle
from tritonclient.grpc import model_config_pb2 as theirs

from polarprune.errors import BundleError, ConfigError, PolarpruneError, Refused
from polarprune.manifest import BatchProfile, TensorSpec, read_manifest, write_manifest
from polarprune_deploy.fleet.kserve_manifest import write_kserve
from polarprune_deploy.fleet.triton_config import TritonOptions
from polarprune_deploy.fleet.triton_repository import write_triton_repository


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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_bundle_of(tmp_path / "plan", convolution(), engine=engine_info())


ONNX_CONFIG = """
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


PLAN_CONFIG = """
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


def test_other_models_and_versions_stay_as_they_are(
    small: Path, plan: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    (repository / "theirs" / "3").mkdir(parents=True)
    (repository / "theirs" / "config.pbtxt").write_text('name: "theirs"')
    before = tree(repository)
    write_triton_repository(small, repository)
    write_triton_repository(plan, repository)
    first = tree(repository)
    assert {name: first[name] for name in before} == before
    answer = write_triton_repository(small, repository)
    after = tree(repository)
    assert answer["version"] == 2
    assert set(after) - set(first) == {"small/2", "small/2/model.onnx"}
    assert {name for name in first if first[name] != after[name]} == {"small/config.pbtxt"}
    model = repository / "small"
    said = parameters(read_config(model))
    assert said["polarprune.1.model_sha256"] == said["polarprune.2.model_sha256"]
    assert without_parameters(read_config(model)) == text_format.Parse(
        ONNX_CONFIG, theirs.ModelConfig()
    )


def test_a_version_is_taken_as_it_is_asked_for(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert write_triton_repository(small, repository, version=7)["version"] == 7
    assert write_triton_repository(small, repository)["version"] == 8
    answer = write_triton_repository(small, repository, version=3)
    assert any("highest version: 8, not 3" in remark for remark in answer["remarks"])
    before = tree(repository)
    with pytest.raises(Refused, match="has a version 7 already"):
        write_triton_repository(small, repository, version=7)
    assert tree(repository) == before


def without_engine(bundle: Path, place: Path) -> Path:
    """Another bundle of the same network: the same tensors, another manifest."""
    shutil.copytree(bundle, place)
    manifest = read_manifest(bundle)
    assert manifest.engine is not None
    files = {name: e for name, e in manifest.files.items() if name != manifest.engine.file}
    (place / manifest.engine.file).unlink()
    write_manifest(dataclasses.replace(manifest, engine=None, files=files), place)
    return place


def test_a_bundle_of_the_same_kind_is_the_next_version(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_triton_repository(small, repository)
    other = without_engine(small, tmp_path / "other")
    assert write_triton_repository(other, repository)["version"] == 2
    said = parameters(read_config(repository / "small"))
    assert said["polarprune.1.manifest_sha256"] != said["polarprune.2.manifest_sha256"]


BAD_OPTIONS = [
    ({"version": 0}, "--version must be from 1"),
    ({"version": 1 << 40}, "--version must be from 1"),
    ({"name": "a/b"}, "--name is 'a/b'"),
    ({"name": ".hidden"}, "--name is '.hidden'"),
    ({"name": ""}, "--name is ''"),
    ({"options": TritonOptions(instances=0)}, "--instances must be from 1"),
    ({"options": TritonOptions(max_queue_size=-1)}, "--max-queue-size must be from 1"),
    ({"options": TritonOptions(timeout_ms=0)}, "--timeout-ms must be from 1"),
    ({"options": TritonOptions(queue_delay_us=-1)}, "--queue-delay-us must be from 0"),
    ({"options": TritonOptions(backend="pytorch")}, "--backend must be one of auto"),
    ({"options": TritonOptions(device="tpu")}, "--device must be one of auto"),
    ({"options": TritonOptions(device="cpu", accelerate=True)}, "does not go with --device cpu"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_an_option_out_of_range_is_refused_in_one_line(
    options: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        write_triton_repository(small, tmp_path / "repository", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "repository").exists()


def test_what_a_plan_cannot_do_is_refused(plan: Path, tmp_path: Path) -> None:
    for options in (TritonOptions(device="cpu"), TritonOptions(accelerate=True)):
        with pytest.raises(ConfigError, match="give --backend onnxruntime too"):
            write_triton_repository(plan, tmp_path / "repository", options=options)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b / "model.onnx").write_bytes(b"x"), "has 1 bytes, the manifest says"),
        (lambda b: (b / "manifest.json").write_text("{}"), "no schema version"),
        (lambda b: (b / "manifest.json").unlink(), "is not a bundle"),
        (lambda b: (b / "model.tensorrt.engine").write_bytes(b"!" * 28), "sha256"),
        (lambda b: (b / "model.tensorrt.engine").unlink(), "cannot be read"),
    ],
)
def test_a_bundle_that_was_changed_is_refused_before_anything_is_written(
    spoil: Any, message: str, plan: Path, tmp_path: Path
) -> None:
    spoil(plan)
    with pytest.raises(BundleError, match=message):
        write_triton_repository(plan, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_bundle_whose_name_is_no_models_name_takes_another(tmp_path: Path) -> None:
    bundle = write_bundle_of(tmp_path / "bundle", convolution(), name="my net/2")
    with pytest.raises(ConfigError, match="the bundle's name is 'my net/2'; give --name"):
        write_triton_repository(bundle, tmp_path / "repository")
    answer = write_triton_repository(bundle, tmp_path / "repository", name="my-net")
    assert read_config(tmp_path / "repository" / "my-net").name == answer["model"] == "my-net"


def in_the_way(repository: Path, small: Path, kind: str) -> str:
    """Put something where the model should go; what is said then."""
    model = repository / "small"
    if kind == "a file":
        repository.write_text("")
        return "is a file"
    if kind == "a bundle":
        shutil.copytree(small, repository)
        return "is a bundle"
    if kind == "a run":
        repository.mkdir()
        (repository / "run.json").write_text("{}")
        return "is a run"
    if kind == "a file of the model's name":
        repository.mkdir()
        model.write_text("")
        return "is a file"
    if kind == "a folder without a configuration":
        (model / "1").mkdir(parents=True)
        return "has no config.pbtxt"
    if kind == "a configuration that is none":
        model.mkdir(parents=True)
        (model / "config.pbtxt").write_text("nonsense: true")
        return "not a config.pbtxt"
    if kind == "a configuration with a field too many":
        write_triton_repository(small, repository)
        with (model / "config.pbtxt").open("a") as file:
            file.write("max_batchsize: 3\n")
        return "not a config.pbtxt"
    if kind == "other labels":
        write_triton_repository(small, repository)
        (model / "labels.txt").write_text("x\ny\nz\n")
        return "names other classes"
    write_triton_repository(small, repository, options=TritonOptions(instances=2, device="cpu"))
    return r"\(instance_group differs\)"


@pytest.mark.parametrize(
    "kind",
    [
        "a file",
        "a bundle",
        "a run",
        "a file of the model's name",
        "a folder without a configuration",
        "a configuration that is none",
        "a configuration with a field too many",
        "other labels",
        "a model of other options",
    ],
)
def test_what_is_in_the_way_stays_and_is_named(kind: str, small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    message = in_the_way(repository, small, kind)
    before = tree(tmp_path)
    with pytest.raises(Refused, match=message) as refused:
        write_triton_repository(small, repository)
    assert "\n" not in str(refused.value)
    assert tree(tmp_path) == before


def test_nothing_is_added_to_the_bundle_that_is_read(small: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    (tmp_path / "elsewhere").symlink_to(small)
    for inside in (small / "repository", small / "a" / "b", tmp_path / "elsewhere" / "c"):
        for write in (write_triton_repository, write_kserve):
            with pytest.raises(Refused, match="is in the bundle"):
                write(small, inside)
    (tmp_path / "elsewhere").unlink()
    assert tree(tmp_path) == before


def is_whole(repository: Path) -> bool:
    """Whether a server that looks now sees only whole models."""
    for model in repository.iterdir() if repository.exists() else ():
        config = read_config(model)
        versions = [place for place in model.iterdir() if place.is_dir()]
        files = [place / config.default_model_filename for place in versions]
        if not files or not all(file.stat().st_size > 0 for file in files):
            return False
        if refusals_of_triton(config, model):
            return False
    return True


@pytest.mark.parametrize("already", [False, True], ids=["a new model", "a new version"])
def test_a_disk_that_fills_up_leaves_what_was_there(
    already: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(place: Path, after: int) -> int:
        repository = place / "repository"
        if already and not repository.exists():
            write_triton_repository(small, repository)
        with failing_disk(monkeypatch, after, lambda: seen.append(is_whole(repository))) as writes:
            write_triton_repository(small, repository)
        return len(writes)

    seen: list[bool] = []
    for name in ("unlimited", "full"):
        (tmp_path / name).mkdir()
    needed = write(tmp_path / "unlimited", after=1000)
    assert needed > 4
    if already:
        write_triton_repository(small, tmp_path / "full" / "repository")
    before = tree(tmp_path)
    for after in range(needed):
        with pytest.raises(PolarpruneError, match="No space left on device") as failed:
            write(tmp_path / "full", after)
        assert "partial" not in str(failed.value)
        assert tree(tmp_path) == before
    assert all(seen)
    write(tmp_path / "full", needed)
    assert is_whole(tmp_path / "full" / "repository")
    assert not [name for name in tree(tmp_path) if "partial" in name]
