"""The latency table: interpolation against scipy-free brute force, classes, files that lie."""

import json
from pathlib import Path

import pytest
import torch
from small_networks import image, small
from torch import nn

import polarprune
from polarprune.alignment import choose_alignment, uniform_decisions
from polarprune.errors import ConfigError
from polarprune.graph.geometry import Geometry, geometry_of
from polarprune.latency_cost import LatencyCircuit
from polarprune.latency_table import LatencyTable, LayerPoint, Staircase, read_latency_table
from polarprune.targets import latency_budget

PLAIN = Geometry("conv", (3, 3), (1, 1), (1, 1), (1, 1), (8, 8))
STEM = Geometry("conv", (7, 7), (2, 2), (3, 3), (1, 1), (8, 8))
DEPTHWISE = Geometry("conv", (3, 3), (1, 1), (1, 1), (1, 1), (8, 8), group=(1, 1))


def table_of(times, counts=range(1, 9), multiples=((1,), (1,)), geometry=PLAIN) -> LatencyTable:
    points = tuple(LayerPoint(i, o, times(i, o)) for i in counts for o in counts)
    return LatencyTable({"model": "test"}, multiples, {geometry: points}, 1.0, 0.0)


def test_measured_counts_give_what_was_measured() -> None:
    table = table_of(lambda i, o: 1 + i * i + 3 * o)
    for inputs in range(1, 9):
        for outputs in range(1, 9):
            got = table.layer(PLAIN, inputs, outputs).ms
            assert got == pytest.approx(1 + inputs * inputs + 3 * outputs)


def test_a_bilinear_time_is_foreseen_exactly_between_and_beyond_the_counts() -> None:
    table = table_of(lambda i, o: 2 + 0.5 * i + 0.25 * o + 0.1 * i * o, counts=(2, 5, 8))
    for inputs, outputs in ((3.3, 6.1), (2, 7.5), (1, 8), (9.5, 1.5), (5, 5)):
        slope = table.layer(PLAIN, inputs, outputs)
        assert slope.ms == pytest.approx(2 + 0.5 * inputs + 0.25 * outputs + 0.1 * inputs * outputs)
        assert slope.inputs == pytest.approx(0.5 + 0.1 * outputs)
        assert slope.outputs == pytest.approx(0.25 + 0.1 * inputs)


def test_a_time_never_falls_below_nothing() -> None:
    table = table_of(lambda i, o: float(max(0.1, i - 3)), counts=(4, 8))
    assert table.layer(PLAIN, 1, 4).ms == 0.0


def test_counts_that_are_no_multiple_go_by_their_own_times() -> None:
    def times(inputs: int, outputs: int) -> float:
        return inputs * outputs * (1.0 if inputs % 4 == 0 else 2.0)

    counts = (1, 3, 4, 5, 7, 8, 11, 12)
    table = table_of(times, counts, multiples=((1, 4), (1,)))
    assert table.layer(PLAIN, 6, 4).ms == pytest.approx(48)  # between 5 and 7, at twice the price
    assert table.layer(PLAIN, 8, 4).ms == pytest.approx(32)
    # Expected counts belong to the multiple that they will be rounded up to.
    assert table.layer(PLAIN, 6.5, 4, align=4).ms == pytest.approx(26)
    assert table.layer(PLAIN, 6.5, 4, align=2).ms == pytest.approx(52)


def test_layers_off_the_multiples_take_what_lies_around_them_too() -> None:
    points = {
        PLAIN: tuple(LayerPoint(i, o, float(i * o)) for i in (1, 3, 4, 8) for o in (1, 3, 4, 8)),
        # Three inputs whatever is cut: nothing that could be on.
        STEM: tuple(LayerPoint(3, o, float(3 * o)) for o in (1, 3, 4, 8)),
        DEPTHWISE: tuple(LayerPoint(n, 1, float(n)) for n in (1, 3, 4, 8)),
    }
    table = LatencyTable({}, ((1, 4), (1, 4)), points, off_factor=1.5)
    for geometry, inputs, outputs, alone in (
        (PLAIN, 4, 8, 32), (STEM, 3, 8, 24), (DEPTHWISE, 8, 8, 8)
    ):  # fmt: skip
        assert table.layer(geometry, inputs, outputs).ms == pytest.approx(alone)
    for geometry, inputs, outputs, alone in (
        (PLAIN, 3, 8, 24), (PLAIN, 8, 3, 24), (STEM, 3, 3, 9), (DEPTHWISE, 3, 3, 3)
    ):  # fmt: skip
        assert table.layer(geometry, inputs, outputs).ms == pytest.approx(1.5 * alone)
    slope = table.layer(PLAIN, 2.0, 3)
    assert (slope.inputs, slope.outputs) == (pytest.approx(4.5), pytest.approx(3.0))


def test_a_class_that_a_small_layer_lacks_falls_back_on_the_next() -> None:
    table = table_of(lambda i, o: float(i * o), counts=(1, 2, 3), multiples=((1, 16), (1, 16)))
    assert table.layer(PLAIN, 16, 16).ms == pytest.approx(256)


def test_a_grouped_layer_goes_by_the_number_of_its_groups() -> None:
    points = {DEPTHWISE: tuple(LayerPoint(n, 1, 0.5 + 0.25 * n) for n in (2, 4, 8))}
    table = LatencyTable({}, ((1,), (1,)), points)
    slope = table.layer(DEPTHWISE, 6, 6)
    assert (slope.ms, slope.inputs, slope.outputs) == (pytest.approx(2.0), 0.0, 0.25)


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            (1, 4, 9, 9),
            "3x3 convolution, stride 2, at 9x9",
        ),
        (nn.Conv2d(4, 8, (1, 5), padding="same"), (1, 4, 9, 7), "1x5 convolution, at 9x7"),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 9, 9), "3x3 convolution, depthwise, at 9x9"),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 9, 9), "3x3 convolution, groups of 2, at 9x9"),
        (
            nn.ConvTranspose2d(4, 8, 2, 2),
            (1, 4, 5, 5),
            "2x2 transposed convolution, stride 2, at 5x5",
        ),
        (nn.Linear(4, 8), (1, 4), "linear layer of 1 row"),
        (nn.Linear(4, 8), (1, 7, 4), "linear layer of 7 rows"),
    ],
)
def test_geometries_say_what_they_are_and_survive_json(module, shape, words) -> None:
    geometry = geometry_of(module, shape)
    assert str(geometry) == words
    assert Geometry.from_dict(json.loads(json.dumps(geometry.as_dict()))) == geometry


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    staircase = Staircase(PLAIN, "inputs", 8, (1, 2), (0.5, 0.75))
    points = {PLAIN: (LayerPoint(1, 1, 0.5), LayerPoint(2, 1, 1.0))}
    table = LatencyTable(
        {"model": "m", "batch": 2}, ((1, 2), (1,)), points, 1.5, 0.25,
        ({"share": 1.0, "align": 1, "layers_ms": 1.0, "ms": 2.0, "predicted_ms": 1.75},),
        (staircase,),
    )  # fmt: skip
    table.write(tmp_path / "t.json")
    assert read_latency_table(tmp_path / "t.json") == table
    assert list(tmp_path.iterdir()) == [tmp_path / "t.json"]


BROKEN = {
    "not JSON": "{",
    "something else": '{"a": 1}',
    "another schema": {"schema": 99},
    "a time of nothing": {"layers": [{"geometry": PLAIN.as_dict(), "points": [[1, 1, 0]]}]},
    "no layers": {"layers": []},
    "a hole in the grid": {
        "layers": [{"geometry": PLAIN.as_dict(), "points": [[1, 1, 1], [2, 2, 1]]}]
    },
    "no geometry": {"layers": [{"geometry": {"kind": "conv"}, "points": [[1, 1, 1]]}]},
    "an unknown layer": {
        "layers": [{"geometry": {**PLAIN.as_dict(), "kind": "magic"}, "points": [[1, 1, 1]]}]
    },
    "a factor of nothing": {"factor": 0},
    "multiples that fall": {"multiples": {"inputs": [4, 1], "outputs": [1]}},
    "words for numbers": {"fixed_ms": "much"},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path: Path, broken) -> None:
    path = tmp_path / "t.json"
    if isinstance(broken, dict):
        good = table_of(lambda i, o: 1.0).as_dict()
        path.write_text(json.dumps({**good, **broken}))
    else:
        path.write_text(broken)
    with pytest.raises(ConfigError, match="no latency table") as caught:
        read_latency_table(path)
    assert "\n" not in str(caught.value)


def test_no_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="polarprune profile"):
        read_latency_table(tmp_path / "absent.json")


def _gated():
    def compute(s, x):
        x = torch.relu(s.stem(x))
        return s.head(torch.relu(x + s.two(torch.relu(s.one(x)))))

    return polarprune.attach_gates(small(compute), image())


def _table_for(gated, times, multiples=((1,), (1,)), **options) -> LatencyTable:
    points = {}
    for cost in gated.analysis.costs:
        first, second = len(cost.mix.inputs), len(cost.mix.outputs)
        old = {(p.inputs, p.outputs): p for p in points.get(cost.geometry, ())}
        new = {
            (i, o): LayerPoint(i, o, times(i, o))
            for i in range(1, max(first, *(i for i, _ in old), 1) + 1)
            for o in range(1, max(second, *(o for _, o in old), 1) + 1)
        }
        points[cost.geometry] = tuple(new.values())
    return LatencyTable({"model": "small"}, multiples, points, **options)


def test_expected_latency_has_the_gradient_of_its_differences() -> None:
    gated = _gated()
    table = _table_for(gated, lambda i, o: 1 + 0.3 * i + 0.7 * o + 0.01 * i * i * o, factor=1.3)
    circuit = LatencyCircuit(gated.analysis, gated.circuit, table)
    p = [torch.full((s.units,), 0.71, dtype=torch.double, requires_grad=True) for s in gated.sites]
    circuit.expected_ms(p, 1).backward()
    step = 1e-6
    for place, site in enumerate(p):
        for unit in range(len(site)):
            moved = [x.detach().clone() for x in p]
            moved[place][unit] += step
            more = float(circuit.expected_ms(moved, 1))
            moved[place][unit] -= 2 * step
            slope = (more - float(circuit.expected_ms(moved, 1))) / (2 * step)
            assert float(site.grad[unit]) == pytest.approx(slope, rel=1e-4)
            assert slope > 0


def test_a_budget_of_latency_is_kept_and_counts_in_nanoseconds() -> None:
    gated = _gated()
    table = _table_for(gated, lambda i, o: 0.01 * i * o, fixed_ms=0.5)
    budget = latency_budget(gated, 0.6, table)
    gated.search()
    kept = gated.decisions(budget)
    cost = budget.cost(list(kept.values()))
    assert 0.3 * budget.dense < cost <= budget.bound
    everything = [torch.ones(s.units, dtype=torch.bool) for s in gated.sites]
    assert budget.cost(everything) == budget.dense
    # stem 8 x 3, one and two 8 x 8, last 6 x 8, classes 4 x 6
    assert budget.dense == round((0.01 * (24 + 64 + 64 + 48 + 24) + 0.5) * 1e6)


def test_a_bound_below_the_constant_cannot_be_reached() -> None:
    gated = _gated()
    table = _table_for(gated, lambda i, o: 0.01 * i * o, fixed_ms=50.0)
    with pytest.raises(ConfigError, match=r"--target-latency 0\.5 cannot be reached"):
        gated.check_reachable(latency_budget(gated, 0.5, table))


def test_another_networks_table_is_refused_by_the_layer_it_lacks() -> None:
    gated = _gated()
    with pytest.raises(ConfigError, match=r"has no 3x3 convolution, at 8x8.*polarprune profile"):
        latency_budget(
            gated,
            0.5,
            table_of(lambda i, o: 1.0, geometry=Geometry("linear", (), (), (), (), (1,))),
        )


def test_the_alignment_is_what_the_device_is_fast_at() -> None:
    def compute(s, x):
        return s.classes(torch.relu(s.last(torch.relu(s.stem(x)))).mean((2, 3)))

    wide = {"stem": nn.Conv2d(3, 64, 3), "last": nn.Conv2d(64, 64, 3), "classes": nn.Linear(64, 4)}
    gated = polarprune.attach_gates(small(compute, **wide), image())

    def slow_off(multiple: int):
        def times(inputs: int, outputs: int) -> float:
            return inputs * outputs * (1.0 if inputs % multiple == 0 else 3.0)

        return _table_for(gated, times, multiples=((1, *({multiple} - {1})), (1,)))

    assert choose_alignment(gated, slow_off(1), 0.5) <= 2  # as good as 1, to the step of one unit
    assert choose_alignment(gated, slow_off(8), 0.5) == 8
    assert choose_alignment(gated, slow_off(16), 0.5) == 16


def test_uniform_decisions_round_up_and_leave_blocks() -> None:
    gated = _gated()
    for site, opened in zip(gated.sites, uniform_decisions(gated, 0.3, 2), strict=True):
        if site.kind == "block":
            assert bool(opened.all())
        else:
            assert int(opened.sum()) == {8: 4, 6: 2}[site.units]
            assert bool(opened[: int(opened.sum())].all())
