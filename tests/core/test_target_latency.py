"""`train --target-latency`: bounded by a table, aligned by it, resumable, refused in one line."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digit_runs import Killed, config, kill_in_epoch, resnet8

import polarprune
from polarprune.commands.train_command import _latency_words
from polarprune.errors import ConfigError
from polarprune.graph.geometry import Geometry
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable, LayerPoint
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.train_config import TrainResult
from polarprune.runs.training import train

BLOCK = 4  # channels that the made-up device computes at once


def write_table(path: Path, image_size: int = 8) -> LatencyTable:
    """A device whose kernels come in blocks, and which is three times as slow off them."""
    net = resnet8()
    gated = polarprune.attach_gates(net, torch.zeros(1, 3, image_size, image_size))

    def ms(geometry: Geometry, inputs: int, outputs: int) -> float:
        slow = 3.0 if inputs % BLOCK else 1.0
        pixels = math.prod(geometry.size) / math.prod(geometry.stride)
        return 0.001 + 1e-7 * slow * pixels * inputs * -(-outputs // BLOCK) * BLOCK

    points = {}
    for cost in gated.analysis.costs:
        most = max(len(cost.mix.inputs), len(cost.mix.outputs))
        counts = range(1, most + 1)
        points[cost.geometry] = tuple(
            LayerPoint(i, o, ms(cost.geometry, i, o)) for i in counts for o in counts
        )
    table = LatencyTable(
        {"model": "digit_runs:resnet8"}, ((1, BLOCK), (1, BLOCK)), points, 1.1, 0.01
    )
    table.write(path)
    return table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LatencyTable]:
    folder = tmp_path_factory.mktemp("latency")
    table = write_table(folder / "table.json")
    train(config(folder / "run", target_latency=0.6, latency_table=folder / "table.json",
                 target=None, align=None))  # fmt: skip
    return folder / "run", table


@pytest.mark.parametrize(("head", "end"), [({}, ""), ({"batch": 64}, " --batch 64")])
def test_whoever_bounds_latency_is_told_how_to_measure_it(
    finished: tuple[Path, LatencyTable], head: dict[str, int], end: str, tmp_path: Path
) -> None:
    run, table = finished
    replace(table, head={**table.head, **head}).write(tmp_path / "table.json")
    result = TrainResult.from_dict({"run": str(run), **RunFolder(run).result})
    [words] = _latency_words(result, tmp_path / "table.json")
    assert words.endswith(f"measure it with: polarprune bench {run}{end}")


def test_the_network_keeps_the_bound_by_the_table(finished: tuple[Path, LatencyTable]) -> None:
    run, table = finished
    result = RunFolder(run).result
    net = resnet8()
    x = torch.zeros(1, 3, 8, 8)

    def predicted(network: torch.nn.Module) -> float:
        gated = polarprune.attach_gates(network, x)
        return LatencyCircuit(gated.analysis, gated.circuit, table).dense_ms

    ratio = predicted(RunFolder(run).pruned_network()) / predicted(net)
    assert ratio == pytest.approx(result["latency_ratio"], rel=1e-4)
    assert 0.3 < ratio <= 0.6
    assert result["macs_ratio"] < 1


def test_the_channel_counts_are_those_that_the_device_is_fast_at(
    finished: tuple[Path, LatencyTable],
) -> None:
    run, _ = finished
    assert RunFolder(run).result["align"] == BLOCK
    small = RunFolder(run).pruned_network()
    counts = [m.out_channels for m in small.modules() if isinstance(m, torch.nn.Conv2d)]
    assert counts
    assert all(count % BLOCK == 0 for count in counts)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, finished: tuple[Path, LatencyTable]
) -> None:
    run, table = finished
    table.write(tmp_path / "table.json")
    settings = {
        "target_latency": 0.6, "latency_table": tmp_path / "table.json", "target": None,
        "align": None,
    }  # fmt: skip
    for epoch in (2, 5):  # while gates search, and after they have settled
        with pytest.raises(Killed):
            train(config(tmp_path / "run", resume=epoch > 2, **settings), kill_in_epoch(epoch))
    train(config(tmp_path / "run", resume=True, **settings))
    mine, theirs = RunFolder(tmp_path / "run").result, RunFolder(run).result
    for key in ("top1", "macs", "latency_ratio", "align"):
        assert mine[key] == theirs[key]


REFUSED = {
    "two bounds": ({"target_latency": 0.5, "target": 0.5}, "--target or --target-latency"),
    "no table": ({"target_latency": 0.5, "latency_table": None}, "go together"),
    "no bound": ({"target": 0.5}, "go together"),
    "out of range": ({"target_latency": 1.5}, "--target-latency must be above 0"),
    "no file": ({"target_latency": 0.5, "latency_table": Path("absent")}, "cannot be read"),
    "too small": ({"target_latency": 0.01}, "--target-latency 0.01 cannot be reached"),
    "another image size": ({"target_latency": 0.5, "image_size": 16}, "has no .* at 16x16"),
    "a method without a bound": (
        {"target_latency": 0.5, "method": "mask-predictor"}, "sets the cost itself"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    write_table(tmp_path / "table.json")
    settings = {"target": None, "latency_table": tmp_path / "table.json", "align": None}
    with pytest.raises(ConfigError, match=words) as caught:
        train(config(tmp_path / "run", **{**settings, **changes}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_pass_takes_a_table_too(finished: tuple[Path, LatencyTable]) -> None:
    _, table = finished
    gated = polarprune.attach_gates(resnet8(), torch.zeros(1, 3, 8, 8), align=BLOCK)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    one = polarprune.OnePass(
        gated, optimizer, target_latency=0.7, latency_table=table, total_steps=1
    )
    assert one.budget.quantity == "latency"
    one.network(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert one.step() is not None
    assert one.kept <= 0.7
    assert json.loads(json.dumps(one.state_dict()["latency_now"])) / one.budget.dense == one.kept


def test_one_pass_refuses_a_bound_without_a_table() -> None:
    gated = polarprune.attach_gates(resnet8(), torch.zeros(1, 3, 8, 8))
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match="go together"):
        polarprune.OnePass(gated, optimizer, target_latency=0.7, total_steps=1)
    with pytest.raises(ConfigError, match="give --target or --target-latency, not both"):
        polarprune.OnePass(gated, optimizer, target=0.5, target_latency=0.7, total_steps=1)
