"""The surgery's stopwatch: both sides cut alike, and a known growth gives a known slope."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.slow
def test_both_sides_keep_about_as_many_macs() -> None:
    pytest.importorskip("torch_pruning")
    from benchmarks.surgery_speed import SIDES, timed
    from polarprune import build_network, count_macs

    net = build_network("vgg16_bn", num_classes=10).eval()
    example = torch.randn(1, 3, 32, 32)
    for cut in SIDES.values():
        small, stages = timed(cut, net, example)
        assert 0.24 < count_macs(small, example) / count_macs(net, example) < 0.28
        assert stages["total_s"] > 0
        assert stages["wall_s"] > 0
        assert small(example).shape == (1, 10)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_known_growth_gives_its_power(power: float) -> None:
    from benchmarks.surgery_speed import slope_of

    points = [{"nodes": n, "median_s": {"total_s": 1e-3 * n**power}} for n in (10, 20, 80)]
    assert slope_of(points, "total_s") == pytest.approx(power)
    assert slope_of(points[:1], "total_s") is None


def test_the_record_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.surgery_speed import draw

    seconds = {"attach_s": 1.0, "collapse_s": 0.5, "total_s": 1.5, "wall_s": 1.4}
    curve = {"points": [{"nodes": 10, "median_s": seconds}], "slope": dict.fromkeys(seconds)}
    row = {
        "network": "resnet18",
        "median_s": {"ours": seconds, "theirs": {"total_s": 3.0}},
        "theirs_over_ours": {"speedup": 2.0},
    }
    record = {"n": 9, "rows": [row], "curves": {"chains": curve, "DenseNets": curve}}
    draw(record, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
