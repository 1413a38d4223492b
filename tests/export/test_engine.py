"""Real TensorRT-RTX builds, on a machine that needs no GPU for them."""

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from polarprune.errors import BackendUnavailable, BundleError, ConfigError, Refused
from polarprune.manifest import BatchProfile
from polarprune.terminal import progress_on
from polarprune_export import build_engine, export_bundle, write_bundle
from polarprune_export.bundle import BundleContents
from polarprune_export.engine import EngineOptions, batch_profiles
from polarprune_export.onnx_writer import OnnxReport

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.fixture
def written(onnx_report: OnnxReport) -> Path:
    return onnx_report.path


def save_model(path: Path, node: onnx.NodeProto) -> Path:
    """A graph of one node from "input" (batch, 3) to "logits"."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_an_engine_is_built_and_described(written: Path, tmp_path: Path) -> None:
    report = build_engine(
        written, out_path=tmp_path / "m.engine", batch=(1, 4, 16), runtime="tensorrt_rtx"
    )
    assert report.path.stat().st_size == report.bytes > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["m.engine"]
    info = report.info
    assert info.profiles == (BatchProfile(1, 1, 1), BatchProfile(1, 4, 16))
    assert [(t.name, t.dtype, t.shape) for t in info.inputs] == [
        ("input", "float32", (-1, 3, 32, 32))
    ]
    assert [(t.name, t.shape) for t in info.outputs] == [("logits", (-1, 10))]
    assert report.runs_on.startswith("GeForce/RTX cards of compute capability 8.6, 8.9, 12.0")
    assert report.runs_on.endswith("not A100/H100, not a Triton plan")
    assert info.gpu is None


def test_a_machine_without_a_gpu_builds_for_tensorrt_rtx(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = build_engine(written, out_path=tmp_path / "m.engine")
    assert report.info.runtime == "tensorrt_rtx"


def test_progress_runs_from_nothing_to_everything(written: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_engine(
        written,
        out_path=tmp_path / "m.engine",
        runtime="tensorrt_rtx",
        progress=lambda phase, done, total: seen.append((phase, done, total)),
    )
    assert seen
    assert all(0 <= done <= total for _, done, total in seen)
    assert any(done == total > 0 for _, done, total in seen)


def test_progress_is_seen_on_a_terminal(written: Path, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            while piece := os.read(leader, 1024):
                shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as stream, progress_on(stream) as show:
        build_engine(
            written,
            out_path=tmp_path / "m.engine",
            runtime="tensorrt_rtx",
            progress=lambda text, done, total: show(text, done, total, {}),
        )
    reader.join(10)
    os.close(leader)
    text = shown.decode()
    assert "engine: Building engine" in text
    assert "━" in text


def test_the_cards_can_be_chosen(written: Path, tmp_path: Path) -> None:
    report = build_engine(
        written, out_path=tmp_path / "m", runtime="tensorrt_rtx", targets=("12.0", "8.9")
    )
    assert report.info.compute_capabilities == ("12.0", "8.9")
    assert "capability 12.0, 8.9 (" in report.runs_on
    with pytest.raises(Refused, match=r"build for --gpu 9\.0; it builds for 8\.6, 8\.9, 12\.0"):
        build_engine(written, out_path=tmp_path / "n", runtime="tensorrt_rtx", targets=("9.0",))
    with pytest.raises(Refused, match="--engine-compat version is not for TensorRT-RTX"):
        build_engine(
            written, out_path=tmp_path / "n", runtime="tensorrt_rtx", compatibility="version"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_built_is_refused_before_anything_is_exported(
    plain: fx.GraphModule,
    example: Tensor,
    contents: BundleContents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polarprune_export.bundle.write_onnx", None)
    for options, words in (
        (EngineOptions("tensorrt_rtx", ("9.0",)), "cannot build for"),
        (
            EngineOptions("tensorrt_rtx", None, "version"),
            "--engine-compat version is not for TensorRT-RTX",
        ),
    ):
        with pytest.raises(Refused, match=words):
            write_bundle(plain, tmp_path / "b", example, contents, engine=options)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match="no TensorRT to build with"):
        write_bundle(plain, tmp_path / "b", example, contents, engine="auto")
    assert list(tmp_path.iterdir()) == []


def test_progress_on_a_pipe_says_each_stage_once(written: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    with progress_on(stream) as show:
        build_engine(
            written,
            out_path=tmp_path / "m.engine",
            runtime="tensorrt_rtx",
            progress=lambda text, done, total: show(text, done, total, {}),
        )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "engine: Building engine"
    assert len(set(lines)) == len(lines)


def test_the_fingerprint_is_of_the_graph_and_of_what_was_asked(
    written: Path, tmp_path: Path
) -> None:
    def fingerprint(**options: Any) -> str | None:
        out = tmp_path / "m.engine"
        return build_engine(
            written, out_path=out, runtime="tensorrt_rtx", **options
        ).info.fingerprint

    plain = fingerprint()
    assert plain == fingerprint()
    others = {fingerprint(batch=(1, 2, 4)), fingerprint(targets=("8.9",))}
    assert len(others - {plain}) == 2


def test_options_of_an_engine_need_an_engine(tmp_path: Path) -> None:
    for options in ({"gpus": ["8.9"]}, {"engine_compat": "version"}):
        with pytest.raises(ConfigError, match="give --format trt"):
            export_bundle("resnet20", out=tmp_path / "b", **options)
    with pytest.raises(ConfigError, match="--gpu must be compute capabilities with commas"):
        export_bundle("resnet20", format="trt", gpus=["8.6,"], out=tmp_path / "b")
    with pytest.raises(BundleError, match="cannot be read"):
        build_engine(tmp_path / "no.onnx", out_path=tmp_path / "m", runtime="tensorrt_rtx")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Whirl", ["input"], ["logits"], name="whirl_0", domain="nobody")
    path = save_model(tmp_path / "m.onnx", node)
    with pytest.raises(Refused, match=r"node 'whirl_0'.*log: .*Whirl") as caught:
        build_engine(path, out_path=tmp_path / "m.engine", runtime="tensorrt_rtx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.engine").exists()


def test_a_build_that_fails_quotes_the_builders_log(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU the builder cannot ask for the card it is running on.
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    import tensorrt_rtx as trt

    monkeypatch.setattr("polarprune_export.engine_targets.RTX_TARGETS", {"CURRENT": "this one"})
    assert hasattr(trt.ComputeCapability, "CURRENT")
    with pytest.raises(Refused, match=r"did not build .*[Cc][Uu][Dd][Aa]"):
        build_engine(written, out_path=tmp_path / "m.engine", runtime="tensorrt_rtx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_says_what_to_install(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[rtx\]'"):
        build_engine(written, out_path=tmp_path / "m.engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[gpu\]'"):
        build_engine(written, out_path=tmp_path / "m.engine", runtime="tensorrt")


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 4), (1, 8, 4)])
def test_a_profile_out_of_order_is_refused(batch: tuple[int, int, int]) -> None:
    with pytest.raises(
        ConfigError, match=r"--batch must be MIN:OPT:MAX with 1 <= MIN|--batch may be up to"
    ):
        batch_profiles(batch)


def test_profiles_do_not_repeat_a_batch_of_one() -> None:
    assert batch_profiles((1, 1, 1)) == (BatchProfile(1, 1, 1),)
    assert batch_profiles((2, 4, 8)) == (BatchProfile(2, 4, 8),)


def test_still_progress_has_no_thread_of_its_own_and_draws_what_is_told() -> None:
    leader, follower = os.openpty()
    shown = b""
    before = threading.active_count()
    with os.fdopen(follower, "w") as stream:
        with progress_on(stream, still=True) as show:
            show("a remark", 0, 0, {"top1": 0.5})
            show("timing", 1, 40, {})
            assert threading.active_count() == before
        while b"timing" not in shown:  # drawn already: this does not wait
            shown += os.read(leader, 1024)
    assert b"a remark  top1 0.500\r\n" in shown  # on a line of its own, which stays
    os.close(leader)
