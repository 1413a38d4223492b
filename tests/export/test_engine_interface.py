"""The builder against recorded descriptions of TensorRT 10.12, 11 and TensorRT-RTX 1.7.

Enterprise TensorRT can be neither installed nor run without a GPU; that the builder uses no name
that a release lacks can be checked all the same.
"""

import copy
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polarprune.errors import ConfigError, Refused
from polarprune_export import build_engine
from polarprune_export.engine import EngineReport
from polarprune_export.engine_description import fingerprint_of
from polarprune_export.onnx_writer import OnnxReport
from polarprune_export.timing_cache import cache_path
from tests.export.tensorrt_api.record_rtx import record
from tests.fake_tensorrt import PLAN, TIMINGS, Calls, describe, fake_tensorrt

ENTERPRISE = ("tensorrt_10_12", "tensorrt_11")
GPU = "NVIDIA L4"
REMOVED = {"platform_has_tf32", "platform_has_fast_fp16", "FP16", "EXPLICIT_BATCH"}

Build = Callable[..., EngineReport]


@pytest.fixture
def calls() -> Calls:
    return []


@pytest.fixture
def build(
    calls: Calls, onnx_report: OnnxReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Build:
    """Builds with a description, as if a GPU of capability 8.9 were here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU)

    def call(description: dict[str, Any], **options: Any) -> EngineReport:
        module = fake_tensorrt(description, calls)
        monkeypatch.setitem(sys.modules, description["module"], module)
        out = tmp_path / "m.engine"
        given = {"runtime": description["module"], "batch": (1, 4, 16), **options}
        return build_engine(onnx_report.path, out_path=out, **given)

    return call


@pytest.mark.parametrize("name", ENTERPRISE)
def test_enterprise_tensorrt_builds_with_the_names_it_has(
    name: str, build: Build, calls: Calls, onnx_report: OnnxReport
) -> None:
    seen: list[tuple[str, int, int]] = []
    report = build(
        describe(name), runtime="auto", progress=lambda text, i, n: seen.append((text, i, n))
    )
    assert report.path.read_bytes() == PLAN
    info = report.info
    assert (info.runtime, info.gpu, info.compute_capabilities) == ("tensorrt", GPU, ("8.9",))
    assert info.runs_on == f"{GPU} (compute capability 8.9) with TensorRT {info.version}"
    assert [tensor.shape for tensor in info.inputs] == [(-1, 3, 32, 32)]
    assert ("Builder.create_network", (2,)) in calls, "the network is not strongly typed"
    shapes = [call[1] for call in calls if call[0] == "IOptimizationProfile.set_shape"]
    assert [[shape[0] for shape in call[1:]] for call in shapes] == [[1, 1, 1], [1, 4, 16]]
    assert not any(call[0].endswith("set_compute_capability") for call in calls)
    assert seen == [("engine: Building", done, 2) for done in (0, 1, 2, 2)]
    digest = hashlib.sha256(onnx_report.path.read_bytes()).hexdigest()
    assert info.fingerprint == fingerprint_of(info, digest)


def test_tensorrt_rtx_is_never_asked_for_timings(build: Build, calls: Calls) -> None:
    report = build(describe("rtx_1_7"), targets=("12.0", "8.6"))
    assert report.info.compute_capabilities == ("12.0", "8.6")
    assert not any("timing_cache" in call[0] for call in calls)
    assert ("IBuilderConfig.num_compute_capabilities =", (2,)) in calls


@pytest.mark.parametrize("name", [*ENTERPRISE, "rtx_1_7"])
def test_a_description_without_a_needed_name_fails(name: str, build: Build, calls: Calls) -> None:
    # Every name that a build uses, taken out in turn: the check above can fail.
    build(describe(name))
    used = {call[0].removesuffix(" =") for call in calls}
    assert len(used) >= 12
    for entry in sorted(used):
        kind, _, attribute = entry.partition(".")
        lacking = copy.deepcopy(describe(name))
        lacking["classes"][kind].remove(attribute)
        with pytest.raises(AttributeError, match=attribute):
            build(lacking)


@pytest.mark.parametrize(
    ("where", "lost"),
    [("MemoryPoolType", "WORKSPACE"), ("BuilderFlag", "VERSION_COMPATIBLE")],
)
def test_a_description_without_a_needed_member_fails(where: str, lost: str, build: Build) -> None:
    lacking = describe("tensorrt_11")
    del lacking["enums"][where][lost]
    with pytest.raises(AttributeError, match=lost):
        build(lacking, compatibility="version")


@pytest.mark.parametrize("name", ENTERPRISE)
def test_names_that_only_10_had_are_in_its_description(name: str) -> None:
    description = describe(name)
    listed = {member for members in description["enums"].values() for member in members}
    listed |= {attribute for names in description["classes"].values() for attribute in names}
    assert (listed >= REMOVED) == (name == "tensorrt_10_12")
    assert (REMOVED & listed == set()) == (name == "tensorrt_11")


def test_the_description_of_tensorrt_rtx_is_that_of_the_installed_one() -> None:
    trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    recorded = describe("rtx_1_7")
    if trt.__version__ != recorded["version"]:
        pytest.skip(f"recorded from {recorded['version']}, {trt.__version__} is installed")
    assert record() == recorded


@pytest.mark.parametrize(
    ("compatibility", "set_to", "words"),
    [
        ("version", ("IBuilderConfig.set_flag", "VERSION_COMPATIBLE"), "and later 11.x"),
        (
            "ampere+",
            ("IBuilderConfig.hardware_compatibility_level =", "AMPERE_PLUS"),
            "GPUs of compute capability 8.0 and newer",
        ),
        (
            "same-cc",
            ("IBuilderConfig.hardware_compatibility_level =", "SAME_COMPUTE_CAPABILITY"),
            "GPUs of compute capability 8.9 with",
        ),
    ],
)
def test_compatibility_is_set_and_said(
    compatibility: str, set_to: tuple[str, str], words: str, build: Build, calls: Calls
) -> None:
    plain = build(describe("tensorrt_11"))
    calls.clear()
    report = build(describe("tensorrt_11"), compatibility=compatibility)
    assert set_to in [(call[0], getattr(call[1][0], "name", "")) for call in calls if call[1]]
    assert words in report.runs_on
    assert report.info.flags == (compatibility,)
    assert report.info.fingerprint != plain.info.fingerprint


def test_a_compatibility_that_is_not_there_is_refused(build: Build) -> None:
    with pytest.raises(Refused, match="has no --engine-compat same-cc; install a newer"):
        build(describe("tensorrt_10_12"), compatibility="same-cc")
    for compatibility in ("version", "ampere+"):
        with pytest.raises(Refused, match="is not for TensorRT-RTX: its engines") as caught:
            build(describe("rtx_1_7"), compatibility=compatibility)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--engine-compat must be one of none, version, amp"):
        build(describe("tensorrt_11"), compatibility="all")


def test_a_target_that_cannot_be_built_for_is_refused_with_those_that_can(build: Build) -> None:
    assert build(describe("tensorrt_11"), targets=("8.9",)).info.compute_capabilities == ("8.9",)
    with pytest.raises(Refused, match=r"only for the GPU of this machine, 8\.9, got 9\.0"):
        build(describe("tensorrt_11"), targets=("8.9", "9.0"))
    with pytest.raises(Refused, match=r"for --gpu 9\.0; it builds for 8\.6, 8\.9, 12\.0, 12\.1"):
        build(describe("rtx_1_7"), targets=("8.6", "9.0"))


def timings_file() -> Path:
    return cache_path(describe("tensorrt_11")["version"], GPU)


def test_timings_are_kept_between_builds(build: Build, calls: Calls) -> None:
    assert build(describe("tensorrt_11")).notes == ()
    path = timings_file()
    assert path.read_bytes()[32:] == TIMINGS
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    calls.clear()
    assert build(describe("tensorrt_11")).notes == ()
    assert ("IBuilderConfig.create_timing_cache", (TIMINGS,)) in calls


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is damaged"),
        (b"short", "it is damaged"),
        (hashlib.sha256(b"whole").digest() + b"whol", "it is damaged"),
        (hashlib.sha256(b"refused").digest() + b"refused", "TensorRT does not accept it"),
        (
            hashlib.sha256(b"of another GPU").digest() + b"of another GPU",
            "it is of another GPU or version",
        ),
    ],
)
def test_unusable_timings_are_left_out_with_a_note(content: bytes, why: str, build: Build) -> None:
    path = timings_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    report = build(describe("tensorrt_11"))
    assert report.path.read_bytes() == PLAN
    assert [note for note in report.notes if why in note] == list(report.notes) != []
    assert path.read_bytes()[32:] == TIMINGS, "a good one takes its place"


def test_timings_that_cannot_be_kept_are_no_error(build: Build, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    report = build(describe("tensorrt_11"))
    assert report.path.read_bytes() == PLAN
    assert any("not written" in note for note in report.notes)


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_path("11", GPU).parent == Path.home() / ".cache" / "polarprune"
