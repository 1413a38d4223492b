"""Segmentation runs: from folders of masks to a small network; resuming; torchvision's networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digit_runs import Killed, kill_in_epoch
from mask_trees import write_pairs
from small_loops import gated_resnet
from torch import nn

from polarprune.certificates import top1_agreement
from polarprune.datasets import load_dataset
from polarprune.errors import ConfigError
from polarprune.inspection.inspecting import inspect_run
from polarprune.onepass import OnePass, Phases
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train
from polarprune.tasks import build_task

EPOCHS = 10


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("masks") / "pairs", count=40)


def config(tree: Path, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        model="unet-d3-w8", task="segmentation", data=str(tree), out=out, image_size=32,
        crop_size=24, epochs=EPOCHS, batch_size=8, lr=0.05, workers=0,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config(tree, out))
    return RunFolder(out)


def test_discs_are_found_at_half_of_the_macs(finished: RunFolder) -> None:
    result = finished.result
    assert result["macs_ratio"] <= 0.5
    assert result["miou"] > 0.8
    assert result["dice"] > 0.88
    assert 0.5 < result["pixel_agreement"] <= 1
    assert "top1" not in result
    assert "agreement" not in result
    last = finished.metrics()[-1]
    assert {"miou", "dice"} <= last.keys()
    [cut] = finished.cuts()
    assert cut["max_rel_error"] < 1e-9
    assert {"miou_before", "miou_after"} <= cut.keys()
    assert cut["output_agreement"] == result["pixel_agreement"]


def test_the_figures_are_those_of_the_network_in_the_folder(
    tree: Path, finished: RunFolder
) -> None:
    data = load_dataset(
        tree, image_size=32, mean_std=(finished.mean, finished.std), task="segmentation", workers=0
    )
    net = finished.pruned_network().eval()
    tally = build_task("segmentation").tally()
    with torch.no_grad():
        for images, labels in data.test.batches(3, shuffle_seed=None, augment=False):
            tally.add(net(images), labels)
    found = tally.figures()
    assert found["miou"] == pytest.approx(finished.result["miou"], abs=2e-3)
    shown = inspect_run(finished)
    assert shown.figures["dice"] == finished.result["dice"]
    assert json.dumps(shown.as_dict())


@pytest.mark.parametrize("epoch", [3, 6], ids=["searching", "settled"])
def test_a_killed_run_resumes_bit_for_bit(
    tree: Path, finished: RunFolder, tmp_path: Path, epoch: int
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(config(tree, out), kill_in_epoch(epoch))
    train(config(tree, out, resume=True))
    expected = finished.pruned_network().state_dict()
    got = RunFolder(out).pruned_network().state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_teacher_is_learned_from_pixel_by_pixel(
    tree: Path, finished: RunFolder, tmp_path: Path
) -> None:
    result = train(config(tree, tmp_path / "run", teacher=finished.path, epochs=2))
    assert result.figures["miou"] > 0
    assert result.train_macs_ratio > 0.7  # the teacher's forward passes are in it


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fcn_resnet50", marks=pytest.mark.study),
        pytest.param("deeplabv3_resnet50", marks=pytest.mark.study),
        "lraspp_mobilenet_v3_large",
    ],
)
def test_networks_of_torchvision_train_and_collapse(tree: Path, tmp_path: Path, name: str) -> None:
    result = train(
        config(
            tree, tmp_path / "run", model=f"torchvision:{name}", epochs=1, batch_size=8,
            crop_size=None, image_size=32, method="random", target=0.6,
        )
    )  # fmt: skip
    assert 0.5 < result.macs_ratio <= 0.6
    small = RunFolder(tmp_path / "run").pruned_network().eval()
    outputs = small(torch.zeros(1, 3, 32, 32))
    assert outputs["out"].shape == (1, 2, 32, 32)


def test_images_are_taken_at_their_own_size(tree: Path, tmp_path: Path) -> None:
    train(
        config(
            tree, tmp_path / "run", model="unet-d2-w4", target=1.0, epochs=1, image_size=None,
            crop_size=None,
        )
    )  # fmt: skip
    document = RunFolder(tmp_path / "run").document
    assert document["input_shape"][1:] == [32, 32]


UNFIT = {
    "a network that nothing could hold": (
        {"model": "unet-d30-w1"}, "depth 30 and width 1 has more than 65,536 channels"
    ),
    "a classifier": ({"model": "resnet20"}, "segmentation needs one score a class and pixel"),
    "a size that two poolings do not divide": (
        {"image_size": 30, "crop_size": 20}, "of 30 x 30 pixels: .*; try another --image-size"
    ),
    "a crop that two poolings do not divide": (
        {"crop_size": 30}, "images of 30 x 30 pixels: .*; try another --crop-size"
    ),
    "fewer classes than the labels": ({"num_classes": 1}, "--num-classes is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    tree: Path, tmp_path: Path, case: str
) -> None:
    changes, message = UNFIT[case]
    with pytest.raises(ConfigError, match=message) as raised:
        train(config(tree, tmp_path / "run", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_segmentation_network_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train it with --task segmentation"):
        train(
            TrainConfig(
                model="torchvision:deeplabv3_resnet50", data="digits", out=tmp_path / "run",
                image_size=32, epochs=1,
            )
        )  # fmt: skip


def test_output_agreement_is_that_of_the_gated_and_the_cut_network() -> None:
    gated = gated_resnet()
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    one = OnePass(
        gated, optimizer, target=0.5, total_steps=2, phases=Phases(search=0, settle=1),
        held_out=images,
    )  # fmt: skip
    for _ in range(2):
        (one.network(images).square().mean() + one.loss()).backward()
        optimizer.step()
        with torch.no_grad():
            before = _evaluated(one.network, images)
        one.step()
    [cut] = one.cuts
    after = _evaluated(one.network, images)
    assert cut.output_agreement == float((before.argmax(1) == after.argmax(1)).double().mean())
    assert top1_agreement(before, after) == cut.output_agreement


def _evaluated(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = net.eval()(images)
    net.train()
    return outputs


def test_pixels_agree_along_the_axis_of_classes() -> None:
    left = torch.zeros(1, 2, 2, 2)
    left[0, 1, 0] = 1.0
    right = torch.zeros(1, 2, 2, 2)
    assert top1_agreement(left, right) == 0.5
    assert top1_agreement({"out": left, "aux": right}, {"out": right, "aux": left}) == 0.5
    assert top1_agreement({"boxes": left[0]}, {"boxes": right[0]}) is None
