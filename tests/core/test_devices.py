"""Which memory layout a network is trained in, and that runs follow it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from polarprune.devices import fast_layout
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.onepass import OnePass
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("widths", "layout"),
    [
        ((16, 32, 64), torch.channels_last),
        ((16, 16, 48), torch.channels_last),
        ((11, 23, 45), torch.contiguous_format),
        ((16, 24, 48), torch.contiguous_format),
    ],
)
def test_channels_last_wants_multiples_of_16_on_a_cpu(
    widths: tuple[int, int, int], layout: torch.memory_format
) -> None:
    assert fast_layout(CifarResNet(1, 10, widths), CPU) == layout


def test_a_gpu_is_left_in_channels_last() -> None:
    net = CifarResNet(1, 10, (11, 23, 45))
    assert fast_layout(net, torch.device("cuda")) == torch.channels_last


def test_depthwise_convolutions_do_not_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 24, 1), nn.Conv2d(24, 24, 3, groups=24))
    assert fast_layout(net, CPU) == torch.contiguous_format
    assert fast_layout(net[:1], CPU) == torch.channels_last
    assert fast_layout(nn.Sequential(nn.Conv2d(24, 24, 3, groups=24)), CPU) == torch.channels_last


def test_a_run_changes_its_layout_with_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, set[tuple[bool, bool]]] = {False: set(), True: set()}
    whole = OnePass.step

    def watched(one: OnePass) -> object:
        [weight] = [p for n, p in one.network.named_parameters() if "layer2.0.conv1.weight" in n]
        last = weight.is_contiguous(memory_format=torch.channels_last)
        seen[one.settled].add((last, weight.is_contiguous()))
        return whole(one)

    monkeypatch.setattr(OnePass, "step", watched)
    train(TrainConfig("digit_runs:resnet8", "digits", tmp_path / "run", epochs=2))
    assert seen == {False: {(True, False)}, True: {(False, True)}}
