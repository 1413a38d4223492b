"""`export_bundle` as the command line calls it: networks by name, runs, and bad arguments."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import polarprune
from polarprune.datasets import load_dataset
from polarprune.errors import ConfigError, ParityError, PolarpruneError, RunFolderError
from polarprune.lowering import plain_network
from polarprune.manifest import read_manifest
from polarprune_export import export_bundle, verify_bundle
from polarprune_export.export_sources import cut_links

CUT = {
    "step": 40,
    "sites": ["layer1"],
    "macs_before": 2,
    "macs_after": 1,
    "certificate": {
        "stage": "collapsed",
        "against": "gated, frozen",
        "inputs": "real",
        "n": 16,
        "tolerance": 1e-9,
        "max_rel_error": 2e-15,
        "max_abs_error": 3e-15,
        "top1_agreement": 1.0,
        "passed": True,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run on digits leaves, but for the training."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    torch.manual_seed(0)
    network = plain_network(polarprune.build_network("resnet20"), torch.randn(2, 3, 32, 32))
    polarprune.save_network(network, folder / "pruned")
    data = load_dataset("digits")
    (folder / "run.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "config": {"model": "resnet20", "data": "digits", "target": 0.5},
                "mean": data.mean,
                "std": data.std,
                "classes": data.classes,
                "input_shape": [3, 32, 32],
                "resize_side": data.resize_side,
            }
        )
    )
    (folder / "cuts.jsonl").write_text(json.dumps(CUT) + "\n")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    return out, export_bundle(run, format="trt", batch="1:4:8", data="digits", out=out)


def test_a_run_becomes_a_verified_bundle_with_an_engine(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    out, answer = exported
    assert set(answer) == {
        *("bundle", "onnx", "engine", "runs_on", "precision", "max_abs_error", "top1"),
        *("before", "kept_float32", "random_weights", "uneven_convolutions", "input_shape"),
    }
    assert answer["precision"] == "fp32"
    assert 0 < answer["max_abs_error"] < 1e-3
    for key in ("bundle", "onnx", "engine"):
        assert Path(answer[key]).exists()
    assert "not A100/H100" in answer["runs_on"]
    checked = verify_bundle(out)
    assert checked["top1"] == answer["top1"]
    assert json.loads(json.dumps(answer)) == answer


def test_the_chain_runs_from_the_cuts_to_the_engine(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    links = read_manifest(exported[0]).certificate
    assert [link.stage.split(" ")[0] for link in links] == [
        "cut",
        "onnxruntime",
        "onnxruntime",
        "engine",
    ]
    assert links[0].stage == "cut at step 40"
    assert [link.inputs for link in links] == ["real", "random", "real", None]
    assert [link.passed for link in links] == [True, True, True, None]


def test_a_run_brings_its_own_classes_and_preprocessing(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    manifest = read_manifest(exported[0])
    data = load_dataset("digits")
    assert manifest.classes == tuple(data.classes)
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.mean == pytest.approx(data.mean, rel=1e-12)
    assert manifest.base == {"model": "resnet20", "data": "digits", "target": 0.5}


def test_a_network_by_name_needs_no_data_and_the_paths_open_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = export_bundle("resnet20", num_classes=7, image_size=16, out="deep/bundle")
    assert answer["bundle"] == os.path.join("deep", "bundle")
    assert answer["engine"] is None
    assert answer["top1"] is None
    assert answer["random_weights"] is True
    assert Path(answer["onnx"]).is_file()
    manifest = read_manifest(Path(answer["bundle"]))
    assert manifest.preprocessing is None  # random weights were trained with none
    assert manifest.inputs[0].shape == (-1, 3, 16, 16)
    assert manifest.outputs[0].shape == (-1, 7)
    assert manifest.real_images.startswith("none: ")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "tflite"}, "--format must be one of onnx, trt, got"),
    "precision": ({"precision": "fp8"}, "--precision must be one of fp32, fp16, bf16, int8"),
    "int8 without images": ({"precision": "int8"}, "int8 takes its scales from real images; give"),
    "unknown preprocessing": ({"embed_preprocess": True}, "--embed-preprocess needs the mean"),
    "batch text": ({"batch": "1:x:8"}, "MIN:OPT:MAX"),
    "batch order": ({"batch": "8:4:16"}, "MIN <= OPT"),
    "batch zero": ({"batch": (0, 1, 2)}, "1 <= MIN"),
    "drop": ({"max_accuracy_drop": 101}, "--max-accuracy-drop must be from 0 to 100 points"),
    "drop without data": ({"max_accuracy_drop": 1.0}, "measured on a test split; give --data"),
    "model": ({"source": "resnet21"}, "unknown model 'resnet21'"),
    "image size": ({"image_size": 0}, "--image-size must be at least 1"),
    "classes": ({"num_classes": 7, "data": "digits"}, "10 classes"),
    "data": ({"data": "no-such-folder"}, "no-such-folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_argument_is_one_line_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    arguments, words = BAD[kind]
    with pytest.raises(PolarpruneError, match=words) as caught:
        export_bundle(**{"source": "resnet20", "out": tmp_path / "out", **arguments})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json"):
        export_bundle(tmp_path, out=tmp_path / "out")
    (tmp_path / "run.json").write_text('{"schema": 1, "config": {}}')
    with pytest.raises(RunFolderError, match="input_shape"):
        export_bundle(tmp_path, out=tmp_path / "out")


def test_a_saved_network_is_exported_with_the_classes_of_its_data(
    run: Path, tmp_path: Path
) -> None:
    answer = export_bundle(run / "pruned", data="digits", out=tmp_path / "bundle")
    assert answer["top1"] is not None
    assert answer["random_weights"] is False
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.name == "pruned"
    assert manifest.classes == tuple("0123456789")
    images = torch.randn(2, 3, 32, 32)
    session = onnxruntime.InferenceSession(answer["onnx"], providers=["CPUExecutionProvider"])
    [outputs] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = polarprune.load_network(run / "pruned")(images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_a_saved_network_is_not_exported_with_data_of_other_classes(
    run: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "pets" / split / name / "one.png")
    with pytest.raises(ConfigError, match=r"pets has 2 classes, .* has 10; give other data"):
        export_bundle(run / "pruned", data=str(tmp_path / "pets"), out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_not_exported_again(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"is a bundle already; give the run or model"):
        export_bundle(tmp_path, out=tmp_path / "out")


def test_a_file_is_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").touch()
    with pytest.raises(
        RunFolderError, match=r"^model\.onnx is no run folder; give one, or a model"
    ):
        export_bundle("model.onnx", out=tmp_path / "out")


def test_a_runs_own_facts_cannot_be_overridden(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--num-classes belongs to a model"):
        export_bundle(run, num_classes=3, out=tmp_path / "out")


def test_a_failed_cut_check_in_the_run_stops_the_export(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    broken.mkdir()
    for path in run.iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "cuts.jsonl").unlink()
    record = {**CUT, "certificate": {**CUT["certificate"], "passed": False}}
    (broken / "cuts.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ParityError, match="cut at step 40"):
        export_bundle(broken, out=tmp_path / "out")


def test_a_garbled_cut_record_is_refused_and_no_file_means_no_cuts(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl"
    assert cut_links(path) == ()
    for line in ('{"step": 1', "[]", "{}"):
        path.write_text(line + "\n")
        with pytest.raises(RunFolderError, match="records no cut"):
            cut_links(path)
