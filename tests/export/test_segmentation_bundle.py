"""A bundle of a segmentation run: figures of all pixels, and a certificate over real images."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from mask_trees import write_pairs
from torch import Tensor, nn
from typer.testing import CliRunner

from polarprune.cli import app
from polarprune.datasets import load_dataset
from polarprune.errors import ParityError
from polarprune.manifest import read_manifest
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train
from polarprune_export import accuracy, exporting
from polarprune_export.bundle_verification import verify_bundle
from polarprune_export.onnx_writer import write_onnx


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("masks") / "pairs", count=20)


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainConfig(
            model="unet-d3-w4", task="segmentation", data=str(tree), out=out, image_size=32,
            epochs=4, batch_size=4, workers=0,
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def bundle(tree: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    done = CliRunner().invoke(
        app, ["export", str(run), "--data", str(tree), "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["top1"] is None
    assert 0 < answer["miou"] < answer["dice"] <= 1
    return out


def test_the_figures_are_those_of_the_file_pixel_by_pixel(tree: Path, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.preprocessing is not None
    data = load_dataset(
        tree, image_size=32, task="segmentation", workers=0,
        mean_std=(manifest.preprocessing.mean, manifest.preprocessing.std),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    truth, found = [], []
    for images, labels in data.test.batches(1, shuffle_seed=None, augment=False):
        scores = session.run(None, {"input": np.ascontiguousarray(images.numpy())})[0]
        truth += labels.flatten().tolist()
        found += scores.argmax(1).flatten().tolist()
    ious = []
    for c in (0, 1):
        both = sum(t == c and f == c for t, f in zip(truth, found, strict=True))
        either = sum(t == c or f == c for t, f in zip(truth, found, strict=True))
        ious.append(both / either)
    assert manifest.accuracy is not None
    assert manifest.accuracy.miou == pytest.approx(np.mean(ious))
    assert (manifest.accuracy.n, manifest.accuracy.top1) == (4, None)


class AuxiliaryFirst(nn.Module):
    """As torchvision's networks, but that `out` is not the first of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary, self.classifier = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"aux": self.auxiliary(x), "out": self.classifier(x)}


def test_accuracy_is_that_of_the_output_that_is_trained(tree: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = AuxiliaryFirst().eval()
    data = load_dataset(tree, image_size=32, task="segmentation", workers=0)
    report = write_onnx(net, tmp_path / "m.onnx", torch.zeros(2, 3, 32, 32))
    exported = accuracy.onnx_accuracy(report.path.read_bytes(), data)
    trained = accuracy.torch_accuracy(net, data)
    assert exported.figures == pytest.approx(trained.figures)
    net.classifier, net.auxiliary = net.auxiliary, net.classifier
    assert accuracy.torch_accuracy(net, data).figures != pytest.approx(trained.figures)


def test_the_certificate_counts_pixels_and_holds_again(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    real = [link for link in manifest.certificate if link.inputs == "real"]
    assert len(real) == 2
    assert all(link.passed and link.top1_agreement == 1.0 for link in real)
    answer = verify_bundle(bundle)
    assert answer["dice"] == manifest.accuracy.dice
    assert {link["inputs"] for link in answer["parity"]} == {"random", "real"}
    shown = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert "mIoU" in shown.output


def test_a_fall_of_miou_stops_the_export(
    tree: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = accuracy.torch_accuracy

    def better(*args: object) -> object:
        found = true(*args)
        return type(found)(found.data, found.n, None, "torch", miou=1.0, dice=found.dice)

    monkeypatch.setattr("polarprune_export.bundle.torch_accuracy", better)
    with pytest.raises(ParityError, match=r"mIoU on pairs is \d+\.\d\d points below that of the "):
        exporting.export_bundle(run, data=str(tree), out=tmp_path / "b", max_accuracy_drop=1.0)
    assert not (tmp_path / "b").exists()
