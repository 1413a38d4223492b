"""The cuts of half the MACs: one share, as large as fits, and a record that says what was timed."""

import json
import platform
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.executed_graph import read_executed
from benchmarks.recorded_runs import write_table
from benchmarks.resnet50_cuts import COLUMNS, RECORD, RIVALS, table_rows
from benchmarks.uniform_cuts import STEPS, OurCuts, TorchPruningCuts, largest_share
from polarprune import count_macs
from polarprune.errors import Refused
from polarprune_export import write_onnx

FOUND = json.loads(RECORD.read_text())


def test_the_share_is_the_largest_that_fits() -> None:
    def macs(share: float) -> int:
        return int(1000 * share**2)

    for most in (1, 250, 499, 1000):
        fitting = [k / STEPS for k in range(1, STEPS + 1) if macs(k / STEPS) <= most]
        assert largest_share(macs, most) == max(fitting)
    with pytest.raises(Refused, match="at most -1 MACs"):
        largest_share(macs, -1)


@pytest.fixture(scope="module")
def small_resnet() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [2, 2, 1, 1], num_classes=10).eval(), torch.randn(2, 3, 32, 32)


def test_our_cut_is_uniform_aligned_and_as_large_as_the_bound_allows(small_resnet: Any) -> None:
    net, images = small_resnet
    most = count_macs(net, images) // 2
    ours = OurCuts(net, images)
    made = ours.channels(8, most)
    assert made.macs <= most < ours.at_share(8, made.share + 1 / STEPS).macs
    for name, opened in made.facts["open"].items():
        units = net.get_submodule(name).out_channels
        assert opened == -(-int(made.share * units) // 8) * 8
    assert made.facts["certificate"]["passed"]


def test_of_the_blocks_none_more_could_stay(small_resnet: Any) -> None:
    net, images = small_resnet
    most = count_macs(net, images) // 2
    made = OurCuts(net, images).blocks(most)
    assert made.macs <= most
    blocks = [module for module in net.modules() if isinstance(module, BasicBlock)]
    # The identity blocks of the first two stages cost the same, and less than any other block.
    cheapest = count_macs(nn.Sequential(blocks[1]), torch.zeros(1, 64, 8, 8))
    assert made.macs + cheapest > most
    assert sum(made.facts["closed_a_stage"]) == list(made.facts["open"].values()).count(0)


def test_torch_pruning_rounds_down_and_is_cut_alike(small_resnet: Any) -> None:
    pytest.importorskip("torch_pruning")
    net, images = small_resnet
    theirs, ours = TorchPruningCuts(net, images), OurCuts(net, images)
    unaligned, rounded = theirs.at_share(None, 0.7), theirs.at_share(8, 0.7)
    assert unaligned.macs == ours.at_share(1, 0.7).macs
    for name, kept in unaligned.facts["open"].items():
        assert rounded.facts["open"][name] == kept // 8 * 8
    assert count_macs(net, images) > unaligned.macs  # the network itself was left alone


@pytest.mark.skipif(platform.machine() != "x86_64", reason="blocks of channels are x86's")
def test_what_runs_is_counted_with_the_zeros_that_fill_blocks(tmp_path: Path) -> None:
    def executed(channels: int) -> tuple[int, int, int]:
        net = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, channels, 1), nn.Conv2d(channels, 32, 1)
        ).eval()
        image = torch.zeros(1, 3, 10, 10)
        write_onnx(net, tmp_path / "net.onnx", image)
        found = read_executed(tmp_path / "net.onnx")
        return found.macs - count_macs(net, image), found.blocked_convolutions, found.convolutions

    assert executed(64) == (0, 3, 3)
    zeros, blocked, _ = executed(20)
    assert zeros in {64 * 8 * 8 * (filled - 20) for filled in (24, 32)}  # AVX2, AVX-512
    assert blocked == 3
    assert executed(21)[1] == 2  # no multiple of 4: its reader is left out


def test_the_table_is_that_of_the_record(tmp_path: Path) -> None:
    write_table(tmp_path / "table.md", COLUMNS, table_rows(FOUND))
    assert (tmp_path / "table.md").read_text() == RECORD.with_suffix(".md").read_text()


def test_ratios_follow_from_the_recorded_samples() -> None:
    def times(name: str) -> dict[int, float]:
        return {number: ns / runs for number, _, runs, ns in FOUND["samples"][name]}

    dense = times("dense")
    assert len(dense) == FOUND["n"] >= 40
    speeds = {row["name"]: row["latency"]["speedup"] for row in FOUND["rows"]}
    for name, speed in speeds.items():
        mine, twin = times(name), times(f"{name}, control")
        assert mine.keys() == twin.keys() == dense.keys()
        assert _ratio(dense, mine) == pytest.approx(speed, rel=1e-3)
    for (ours, theirs), ratio in zip(RIVALS, FOUND["ours_over_theirs"].values(), strict=True):
        assert _ratio(times(theirs), times(ours)) == pytest.approx(ratio["speedup"], rel=1e-3)


def _ratio(slow: dict[int, float], fast: dict[int, float]) -> float:
    return median(slow[number] / fast[number] for number in slow)


def test_every_row_is_certified_and_those_of_half_the_macs_keep_no_more() -> None:
    over = [row["name"] for row in FOUND["rows"] if row["macs_ratio"] > FOUND["target"]]
    assert over == ["ours, unaligned, then opened up to multiples of 4"]
    for row in FOUND["rows"]:
        assert row["parity"]["passed"]
        assert row["executed"]["macs"] >= row["macs"]
        if row["name"].startswith("ours"):
            assert row["certificate"]["passed"]
            assert row["certificate"]["tolerance"] == 1e-9
