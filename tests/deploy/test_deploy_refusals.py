"""What `deploy` refuses, in one line each, and that nothing is left of it then."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployed_bundles import tree

import polarprune
from polarprune.errors import BackendUnavailable, BundleError, ConfigError, Refused
from polarprune_deploy.fleet.kserve_manifest import write_kserve
from polarprune_deploy.fleet.kserve_service import KServeOptions
from polarprune_deploy.fleet.triton_config import TritonOptions
from polarprune_deploy.fleet.triton_repository import write_triton_repository

ON_TRITON = {"runtime": "triton", "storage_uri": "s3://models/net"}
Write = Callable[..., dict[str, Any]]


def write_kserve_with(bundle: Path, out: Path, **options: Any) -> dict[str, Any]:
    return write_kserve(bundle, out, KServeOptions(**options))


BAD_FOR_TRITON: list[tuple[dict[str, Any], str]] = [
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
BAD_FOR_KSERVE: list[tuple[dict[str, Any], str]] = [
    ({"runtime": "mlserver"}, "--runtime must be polarprune or triton, got 'mlserver'"),
    ({"runtime": "triton"}, "give --storage-uri"),
    ({**ON_TRITON, "image": "net:1"}, "--image is not for --runtime triton"),
    ({"gpus": 1}, "--gpus is for --runtime triton"),
    ({**ON_TRITON, "gpus": -1}, "--gpus must be from 0"),
    ({"name": "Net"}, "--name must have up to 53"),
    ({"name": "a" * 54}, "--name must have up to 53"),
    ({"name": "net\n"}, "--name must have up to 53"),
    ({"image": "my image"}, "--image must name an image"),
    ({"image": "net:1\nUSER root"}, "--image must name an image"),
    ({"storage_uri": "models/net"}, "--storage-uri must begin with one of s3://"),
    ({"storage_uri": "s3://"}, "--storage-uri must begin with one of s3://"),
    ({"min_replicas": 0}, "--min-replicas must be from 1"),
    ({"min_replicas": 4}, "--max-replicas must be from 4"),
    ({"scale_metric": "rps"}, "--scale-metric must be cpu or memory"),
    ({"scale_target": 101}, "--scale-target must be from 1 to 100"),
    ({"cpu": "two"}, "--cpu must be a quantity"),
    ({"cpu": "2Gi"}, "--cpu must be a quantity"),
    ({"memory": "0Gi"}, "--memory must be a quantity"),
    ({"memory": "500m"}, "--memory must be a quantity"),
    ({"drain_seconds": -1}, "--drain-seconds must be from 0"),
]


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        *((write_triton_repository, options, message) for options, message in BAD_FOR_TRITON),
        *((write_kserve_with, options, message) for options, message in BAD_FOR_KSERVE),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line(
    write: Write, options: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        write(small, tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_a_plan_cannot_do_is_refused(plan: Path, tmp_path: Path) -> None:
    for options in (TritonOptions(device="cpu"), TritonOptions(accelerate=True)):
        with pytest.raises(ConfigError, match="give --backend onnxruntime too"):
            write_triton_repository(plan, tmp_path / "repository", options=options)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("wheel", "options", "message"),
    [
        ("polarprune-0.0.0-py3-none-any.whl", {}, "--wheel must be polarprune-"),
        ("", {}, "does not exist"),
        ("", ON_TRITON, "--wheel is for the embedded server's image"),
    ],
)
def test_a_wheel_that_does_not_fit_is_refused(
    wheel: str, options: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    wheel = wheel or f"polarprune-{polarprune.__version__}-py3-none-any.whl"
    with pytest.raises(ConfigError, match=message):
        write_kserve(small, tmp_path / "kserve", KServeOptions(**options), wheel=tmp_path / wheel)
    assert not (tmp_path / "kserve").exists()


SPOILT: list[tuple[Write, str, str, bytes | None, str]] = [
    (write_triton_repository, "plan", "model.onnx", b"x", "has 1 bytes, the manifest says"),
    (write_triton_repository, "plan", "manifest.json", b"{}", "no schema version"),
    (write_triton_repository, "plan", "manifest.json", None, "is not a bundle"),
    (write_triton_repository, "plan", "model.tensorrt.engine", b"!" * 28, "sha256"),
    (write_triton_repository, "plan", "model.tensorrt.engine", None, "cannot be read"),
    (write_kserve, "small", "model.onnx", b"x", "has 1 bytes, the manifest says"),
    (write_kserve, "small", "parity.safetensors", None, "cannot be read"),
    (write_kserve, "small", "manifest.json", b"[]", "manifest.json"),
]


@pytest.mark.parametrize(("write", "kind", "file", "content", "message"), SPOILT)
def test_a_bundle_that_was_changed_is_refused_before_anything_is_written(
    write: Write, kind: str, file: str, content: bytes | None, message: str, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    bundle: Path = request.getfixturevalue(kind)
    (bundle / file).unlink()
    if content is not None:
        (bundle / file).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        write(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [bundle]


def test_nothing_is_added_to_the_bundle_that_is_read(small: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    (tmp_path / "elsewhere").symlink_to(small)
    for inside in (small / "repository", small / "a" / "b", tmp_path / "elsewhere" / "c"):
        for write in (write_triton_repository, write_kserve):
            with pytest.raises(Refused, match="is in the bundle"):
                write(small, inside)
    (tmp_path / "elsewhere").unlink()
    assert tree(tmp_path) == before


def test_a_folder_with_something_in_it_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_kserve(small, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    for taken, state in (("empty", "not empty"), ("small", "not empty"), ("file", "no folder")):
        with pytest.raises(Refused, match=f"is there already and is {state}; give another folder"):
            write_kserve(small, tmp_path / taken)
    assert tree(tmp_path) == before


def test_without_pyyaml_it_says_what_to_install(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[serve\]'"):
        write_kserve(small, tmp_path / "kserve")
    assert not (tmp_path / "kserve").exists()
