"""Real onnxruntime sessions over small real files."""

import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import polarprune_deploy
from polarprune.errors import BackendUnavailable, BundleError, ConfigError
from polarprune_deploy import load_runner
from polarprune_deploy.latency import compare_latency, random_inputs
from tests.deploy.refilled_runs import check_refills


def plain_convolutions(path: Path, images: np.ndarray) -> np.ndarray:
    """Slow reference for the fixture's network, in float64, with numpy alone."""
    current = images.astype(np.float64)
    for weight in map(numpy_helper.to_array, onnx.load(path).graph.initializer):
        if weight.ndim != 4:
            continue
        padded = np.pad(current, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        current = np.maximum(np.einsum("nchwij,ocij->nohw", windows, weight), 0.0)
    return current.mean(axis=(2, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bundle_runs_and_computes_what_numpy_computes(bundle: Path, threads: int) -> None:
    runner = load_runner(bundle, threads=threads)
    inputs = random_inputs(runner, 3, np.random.default_rng(0))
    expected = plain_convolutions(bundle / "model.onnx", inputs["input"])
    # float32 sums of at most 144 terms, against float64
    np.testing.assert_allclose(runner.run(inputs)["logits"], expected, rtol=1e-4, atol=1e-5)
    prepared = runner.prepare(inputs)
    prepared()
    np.testing.assert_array_equal(prepared.outputs()["logits"], runner.run(inputs)["logits"])
    assert (runner.name, runner.precision) == ("two-convolutions", "fp32")
    assert (runner.backend, runner.device) == ("onnxruntime", "cpu")
    assert runner.settings["intra_op_threads"] == threads
    assert runner.inputs[0].shape == (-1, 3, 32, 32)
    assert runner.load_ms > 0
    runner.close()


def test_outputs_are_poisoned_until_a_run_fills_them(convolutions: Callable[..., Path]) -> None:
    runner = load_runner(convolutions(1), threads=1)
    prepared = runner.prepare(random_inputs(runner, 2, np.random.default_rng(0)))
    assert np.all(np.isnan(prepared.outputs()["logits"]))
    prepared()
    assert np.all(np.isfinite(prepared.outputs()["logits"]))


def test_a_plain_onnx_file_states_its_own_precision(convolutions: Callable[..., Path]) -> None:
    path = convolutions(1)
    assert load_runner(path, threads=1).precision == "fp32"
    model = onnx.load(path)
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "weight_0"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    runner = load_runner(path, threads=1)
    assert (runner.precision, runner.inputs[0].dtype) == ("fp16", "float16")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Whatever onnxruntime is asked to load."""
    seen: list[bytes] = []
    original = onnxruntime.InferenceSession

    def record(data: bytes, **options: object) -> object:
        seen.append(data)
        return original(data, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    return seen


@pytest.mark.parametrize("name", ["", "model.onnx"], ids=["folder", "file in it"])
@pytest.mark.parametrize("edit", ["flip", "append", "truncate", "remove"])
def test_a_bundle_edited_after_export_is_refused_before_onnxruntime_sees_it(
    bundle: Path, sessions: list[bytes], edit: str, name: str
) -> None:
    file = bundle / "model.onnx"
    content = file.read_bytes()
    load_runner(bundle / name, threads=1).close()
    assert sessions == [content]  # the guard below looks at the right door
    sessions.clear()
    edited = {
        "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "append": content + b"\0",
        "truncate": content[:-1],
    }
    if edit == "remove":
        file.unlink()
    else:
        file.write_bytes(edited[edit])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        load_runner(bundle / name, threads=1)
    assert sessions == []


def test_the_bytes_that_were_verified_are_the_bytes_that_run(
    bundle: Path, convolutions: Callable[..., Path]
) -> None:
    runner = load_runner(bundle, threads=1)
    (bundle / "model.onnx").write_bytes(convolutions(4).read_bytes())
    twin = runner.twin()  # loads again, after the file was exchanged
    inputs = random_inputs(runner, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(runner.run(inputs)["logits"], twin.run(inputs)["logits"])
    assert twin.sha256 == runner.sha256


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_without_its_library_or_a_gpu_is_unavailable_in_one_line(
    bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(BackendUnavailable, match=f"{backend} cannot be imported") as caught:
        load_runner(bundle, backend=backend, device="cuda")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, backend, types.ModuleType(backend))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"no GPU is here.*; use --backend onnxruntime$"):
        load_runner(bundle, backend=backend, device="cuda")


def test_cuda_without_its_provider_is_unavailable_and_never_a_silent_cpu_run(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match="no CUDAExecutionProvider"):
        load_runner(bundle, device="cuda")


def test_a_session_that_fell_back_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"]
    )
    with pytest.raises(BackendUnavailable, match="fell back to OtherExecutionProvider"):
        load_runner(bundle, threads=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "backend must be one of"),
        ({"device": "tpu"}, "device must be one of"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(
    bundle: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_runner(bundle, **options)  # type: ignore[arg-type]


def test_a_signature_is_required_where_a_key_is_given(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from polarprune_export.signatures import sign_manifest

    key = Ed25519PrivateKey.generate()
    public = tmp_path / "public.pem"
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, spki))
    with pytest.raises(BundleError, match="has no signature"):
        load_runner(bundle, public_key=public)
    sign_manifest(bundle, key)
    load_runner(bundle, public_key=public).close()
    with pytest.raises(BundleError, match="is no bundle"):
        load_runner(tmp_path / "m.onnx", public_key=public)
    (bundle / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes() + b" ")
    with pytest.raises(BundleError, match="is not the signature"):
        load_runner(bundle, public_key=public)


def test_a_graph_that_asks_for_ten_gigabytes_never_reaches_onnxruntime(
    convolutions: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = convolutions(1)
    model = onnx.load(path)
    sizes = numpy_helper.from_array(np.array([50_000, 50_000], np.int64), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["sizes"], ["big"], "big"))
    onnx.save(model, path)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    with pytest.raises(BundleError, match="'big' makes a tensor of 10000000000 bytes"):
        load_runner(path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a bundle nor an ONNX file"):
        load_runner(tmp_path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_runner(tmp_path / "absent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(BundleError, match=r"junk\.onnx is not valid ONNX") as caught:
        load_runner(tmp_path / "junk.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"image": np.zeros((1, 3, 32, 32), np.float32)},
        {"input": np.zeros((1, 3, 32, 31), np.float32)},
        {"input": np.zeros((3, 32, 32), np.float32)},
        {"input": np.zeros((1, 3, 32, 32))},
    ],
    ids=["none", "wrong name", "wrong side", "no batch", "float64"],
)
def test_inputs_that_do_not_fit_are_refused(bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    runner = load_runner(bundle, threads=1)
    for call in (runner.run, runner.prepare):
        with pytest.raises(
            ConfigError, match=r"takes the inputs \['input'\], got|must be float32 of"
        ):
            call(inputs)


def test_a_closed_runner_says_so(bundle: Path) -> None:
    runner = load_runner(bundle, threads=1)
    inputs = random_inputs(runner, 1, np.random.default_rng(0))
    runner.close()
    runner.close()
    with pytest.raises(ConfigError, match="closed"):
        runner.run(inputs)


def test_a_fixed_batch_is_refused_by_name(convolutions: Callable[..., Path]) -> None:
    runner = load_runner(convolutions(1, batch=2), threads=1)
    assert random_inputs(runner, 2, np.random.default_rng(0))["input"].shape[0] == 2
    with pytest.raises(
        ConfigError, match="exported for batches of 2 alone, got --batch 8; export it"
    ):
        random_inputs(runner, 8, np.random.default_rng(0))


def test_four_times_the_work_is_found_slower(
    brief_timing: None, convolutions: Callable[..., Path]
) -> None:
    light, heavy = (load_runner(convolutions(layers), threads=1) for layers in (3, 12))
    for runners, verdict in (((light, heavy), "slower"), ((heavy, light), "faster")):
        # A real machine that others load makes a study inconclusive, and rightly so: it may be
        # repeated then. No study may show the opposite, nor a difference as small as a half.
        for attempt in range(4):
            time.sleep(5 * attempt)  # what loaded the machine may be done by then
            (got,) = compare_latency(list(runners), batch=1)
            assert got.verdict in (verdict, "inconclusive")
            assert (got.effect.speedup < 0.67) is (verdict == "slower")
            assert (got.effect.speedup > 1.5) is (verdict == "faster")
            if got.verdict == verdict:
                break
        assert got.verdict == verdict


def test_a_network_against_itself_is_not_called_different(
    convolutions: Callable[..., Path],
) -> None:
    path = convolutions(6)
    runners = [load_runner(path, threads=1), load_runner(path, threads=1)]
    # An interval of 95 % errs in one study of twenty: three in a row would be another matter.
    for _ in range(3):
        (got,) = compare_latency(runners, batch=1)
        if got.verdict in ("no_difference_shown", "inconclusive"):
            break
    assert got.verdict in ("no_difference_shown", "inconclusive")
    assert "CPU, not a GPU claim" in got.label
    assert "host latency" in got.label


def test_a_network_that_overflows_is_not_timed(convolutions: Callable[..., Path]) -> None:
    good, bad = convolutions(4), convolutions(4, scale=1e12)
    with pytest.raises(Exception, match="is not finite on random inputs"):
        compare_latency([load_runner(good, threads=1), load_runner(bad, threads=1)], batch=1)


def test_importing_the_package_loads_neither_torch_nor_a_backend() -> None:
    code = (
        "import sys, polarprune_deploy\n"
        "from polarprune_deploy import Comparison, Runner, bench, compare_latency, load_runner\n"
        "assert set(polarprune_deploy.__all__) <= set(dir(polarprune_deploy))\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    assert not hasattr(polarprune_deploy, "nothing")


def test_other_inputs_are_copied_in_and_nobody_elses_array_is_written(
    convolutions: Callable[..., Path],
) -> None:
    check_refills(load_runner(convolutions(1), threads=1))
