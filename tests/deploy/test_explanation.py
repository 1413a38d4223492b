"""Times in, reasons out: the sums are exact, whatever was measured."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from polarprune.terminal import make_console
from polarprune_deploy.layers.explanation import conclude
from polarprune_deploy.layers.explanation_tables import tell, words
from polarprune_deploy.layers.layer_alignment import align
from polarprune_deploy.layers.layer_times import (
    Kernel,
    Layer,
    Measured,
    NetworkTimes,
    Padded,
    Roof,
    fitted,
)

ROOF = Roof(macs_per_ms=1e6, bandwidths=((1000, 2e6), (10**9, 1e6)))


def layer(name: str, inputs: int, outputs: int, *, moved: int = 1) -> Layer:
    macs = inputs * outputs * 100
    return Layer(name, "convolution", macs, moved, inputs, outputs, 1, (3, 3), (1, 1))


def times(
    layers: dict[Layer, float], others: dict[str, float] | None = None, between: float = 0.1
) -> NetworkTimes:
    kernels = [Kernel(f"{each.name}_node", "Conv", each.name, ms) for each, ms in layers.items()]
    kernels += [Kernel(f"{op}_0", op, None, ms) for op, ms in (others or {}).items()]
    total = sum(kernel.ms for kernel in kernels) + between
    return NetworkTimes("net", total, tuple(kernels), tuple(layers))


def padded_to(multiple: int, layer_ms: dict[Layer, float], run_ms: float) -> Padded:
    return Padded(
        multiple,
        run_ms,
        run_ms - 0.1,
        {each.name: ms for each, ms in layer_ms.items()},
        {each.name: each.macs for each in layer_ms},
        {each.name: (each.in_channels, each.out_channels) for each in layer_ms},
    )


@pytest.fixture
def measured() -> Measured:
    """`odd` has 41 inputs and got slower; padded to 48 it is fast. `gone` is gone."""
    dense = times(
        {layer("stem", 3, 64): 0.2, layer("odd", 64, 64): 1.0, layer("gone", 64, 64): 1.0,
         layer("even", 64, 64): 1.0},
        {"Add": 0.1},
    )  # fmt: skip
    pruned = times(
        {layer("stem", 3, 41): 0.15, layer("odd", 41, 32): 1.2, layer("even", 32, 32): 0.3},
        {"Add": 0.1, "ReorderOutput": 0.2},
        between=0.15,
    )
    wide = padded_to(
        16,
        {layer("stem", 3, 48): 0.15, layer("odd", 48, 32): 0.4, layer("even", 32, 32): 0.3},
        run_ms=1.2,
    )
    return Measured(
        "onnxruntime", "cpu", 1, dense, pruned, ROOF, launch_ms=0.01, noise_ms=0.001, runs=20,
        padded=(wide,),
    )  # fmt: skip


def test_the_budget_adds_up(measured: Measured) -> None:
    budget = conclude(measured).budget
    dense, pruned = measured.dense, measured.pruned
    assert budget.expected_ms == pytest.approx(dense.run_ms * pruned.macs / dense.macs)
    total = budget.expected_ms + sum(item.ms for item in budget.items)
    assert total == pytest.approx(pruned.run_ms, abs=1e-12)
    for cost in budget.layers:
        parts = cost.multiples + cost.rounding + cost.memory + cost.rate + cost.better
        assert parts == pytest.approx(cost.pair.excess_ms, abs=1e-12)


def test_the_budget_adds_up_for_any_times(measured: Measured) -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):

        def shaken(side: NetworkTimes) -> NetworkTimes:
            kernels = tuple(
                replace(each, ms=float(generator.exponential(each.ms))) for each in side.kernels
            )
            return replace(side, kernels=kernels, run_ms=float(generator.exponential(3)))

        wide = measured.padded[0]
        new = replace(
            measured,
            dense=shaken(measured.dense),
            pruned=shaken(measured.pruned),
            padded=(
                replace(
                    wide,
                    layer_ms={name: float(generator.exponential(0.5)) for name in wide.layer_ms},
                ),
            ),
        )
        explanation = conclude(new)
        budget = explanation.budget
        total = budget.expected_ms + sum(item.ms for item in budget.items)
        assert total == pytest.approx(new.pruned.run_ms, abs=1e-12)
        for cost in budget.layers:
            assert min(cost.multiples, cost.rounding, cost.memory, cost.rate) >= 0
        gains = [change.gain_ms for change in explanation.changes]
        assert gains == sorted(gains, reverse=True)
        assert len(gains) <= 3


def test_counts_off_the_multiples_are_named_with_what_they_cost(measured: Measured) -> None:
    explanation = conclude(measured)
    assert explanation.padding is measured.padded[0]
    odd = next(cost for cost in explanation.budget.layers if cost.pair.name == "odd")
    assert odd.multiples == pytest.approx(0.8)  # 1.2 ms, of which 0.4 remain when padded
    assert explanation.layers_by_cost()[0] is odd
    (change,) = (each for each in explanation.changes if "--align 16" in each.what)
    assert change.measured
    assert change.gain_ms == pytest.approx(1.95 - 1.1)  # of its kernels; of the run it is 0.9
    text = " ".join(words(explanation))
    assert "odd with 41 input channels, where 48 take 67% less" in text


def test_convolutions_that_lost_the_blocked_layout_are_named(measured: Measured) -> None:
    def in_blocks(side: NetworkTimes, names: set[str]) -> NetworkTimes:
        kernels = tuple(
            replace(k, name=f"{k.name}_nchwc") if k.layer in names else k for k in side.kernels
        )
        return replace(side, kernels=kernels)

    dense = in_blocks(measured.dense, {"stem", "odd", "even"})
    pruned = in_blocks(measured.pruned, {"stem", "even"})
    text = " ".join(words(conclude(replace(measured, dense=dense, pruned=pruned))))
    assert "1 convolutions lost ONNX Runtime's blocked layout" in text
    assert "these have 41." in text
    kept = in_blocks(measured.pruned, {"stem", "odd", "even"})
    text = " ".join(words(conclude(replace(measured, dense=dense, pruned=kept))))
    assert "blocked layout" not in text


def test_a_padded_network_that_is_not_faster_is_no_advice(measured: Measured) -> None:
    slow = replace(measured.padded[0], run_ms=2.2, kernel_ms=2.1)
    explanation = conclude(replace(measured, padded=(slow,)))
    assert explanation.padding is None
    assert explanation.budget.ms("multiples") == 0
    assert not any("--align" in change.what for change in explanation.changes)
    assert "no less time" in " ".join(words(explanation))


def test_shorter_only_between_the_kernels_is_no_gain_of_padding(measured: Measured) -> None:
    lucky = replace(measured.padded[0], kernel_ms=measured.pruned.kernel_ms)
    assert conclude(replace(measured, padded=(lucky,))).padding is None


def test_layers_that_grew_and_layers_that_are_gone_are_found(measured: Measured) -> None:
    pairs, how = align(measured.dense, measured.pruned)
    assert how == "name"
    assert [pair.name for pair in pairs if pair.grew] == ["odd"]
    assert [pair.name for pair in pairs if pair.pruned is None] == ["gone"]
    text = " ".join(words(conclude(measured)))
    assert "Slower than before pruning: odd (1.000 to 1.200 ms" in text


def test_a_channel_that_costs_nothing_is_told(measured: Measured) -> None:
    explanation = conclude(measured)
    stem = next(cost for cost in explanation.budget.layers if cost.pair.name == "stem")
    # 48 channels took the 0.15 ms of 41: 7 of 48 are computed and not there.
    assert stem.rounding == pytest.approx(min(0.15 * 7 / 48, stem.pair.excess_ms))
    assert stem.free_widths == (3, 48)


def test_other_names_are_matched_by_order_and_shape() -> None:
    def named(prefix: str, kinds: list[tuple[int, int]]) -> NetworkTimes:
        layers = {
            replace(
                layer(f"{prefix}{i}", 8, 8), kernel=(kernel, kernel), stride=(stride, stride)
            ): 1.0
            for i, (kernel, stride) in enumerate(kinds)
        }
        return times(layers)

    dense = named("a", [(7, 2), (3, 1), (1, 1), (3, 2), (5, 1)])
    pruned = named("b", [(7, 2), (1, 1), (3, 2), (5, 1)])
    pairs, how = align(dense, pruned)
    assert how == "order and shape"
    found = {p.dense.name: p.pruned and p.pruned.name for p in pairs if p.dense}
    assert found == {"a0": "b0", "a1": None, "a2": "b1", "a3": "b2", "a4": "b3"}


def test_memory_bound_layers_are_held_against_the_bandwidth_of_their_size() -> None:
    small, large = layer("small", 1, 1, moved=800), layer("large", 1, 1, moved=4000)
    assert ROOF.memory_ms(small) == pytest.approx(800 / 2e6)
    assert ROOF.memory_ms(large) == pytest.approx(4000 / 1e6)
    assert ROOF.bound(large) == "memory"
    assert ROOF.bound(layer("busy", 64, 64)) == "compute"
    assert ROOF.share(large, 0.008) == pytest.approx(0.5)


def test_a_run_outside_of_kernels_asks_for_larger_batches_or_a_graph(measured: Measured) -> None:
    waiting = replace(measured.pruned, run_ms=measured.pruned.kernel_ms + 5)
    measured = replace(measured, padded=())
    cpu = conclude(replace(measured, pruned=waiting))
    assert cpu.changes[0].what.startswith("batches of 8 instead of 1")
    gpu = conclude(replace(measured, pruned=waiting, device="cuda"))
    assert "CUDA graph" in gpu.changes[0].what


def test_a_network_that_followed_its_macs_is_told_so() -> None:
    dense = times({layer("a", 64, 64): 1.0, layer("b", 64, 64): 1.0})
    pruned = times({layer("a", 64, 64): 1.0}, between=0.05)
    measured = Measured("onnxruntime", "cpu", 1, dense, pruned, ROOF, 0.01, 0.001, 20)
    explanation = conclude(measured)
    assert explanation.budget.gap_ms == pytest.approx(0, abs=1e-9)
    text = words(explanation)
    assert "time followed the MACs" in text[0]
    assert "No change" in text[-1]


def test_the_telling_and_the_json_hold_every_layer(measured: Measured) -> None:
    explanation = conclude(measured)
    stream = io.StringIO()
    console = make_console(stream)
    for part in tell(explanation):
        console.print(part)
    shown = stream.getvalue()
    for name in ("stem", "odd", "even", "layers that are gone: 1", "ReorderOutput"):
        assert name in shown
    document = json.loads(json.dumps(explanation.as_json(), allow_nan=False))
    assert [each["layer"] for each in document["layers"]] == ["odd", "even", "stem", "gone"]
    total = document["by_macs_ms"] + sum(item["ms"] for item in document["budget"])
    assert total == pytest.approx(document["pruned_ms"])


def test_kernels_that_the_profiler_slowed_are_fitted_into_the_plain_run(measured: Measured) -> None:
    pruned = measured.pruned  # four kernels and a reorder take 1.95 ms of 2.1
    assert fitted(pruned, 0.01) is pruned
    short = replace(pruned, run_ms=pruned.kernel_ms / 1.5 + 0.05)
    found = fitted(short, 0.01)
    assert found.slowed == pytest.approx(1.5)
    assert found.between_ms == pytest.approx(0.05)  # the launches of five kernels
    assert found.layer_ms()["odd"] == pytest.approx(1.2 / 1.5)
    told = words(conclude(replace(measured, pruned=found)))
    assert any("slowed the kernels (1.50 times as long" in line for line in told)
    assert not any("slowed the kernels" in line for line in words(conclude(measured)))


def test_layers_padded_one_by_one_are_called_an_estimate(measured: Measured) -> None:
    alone = replace(measured.padded[0], run_ms=None, kernel_ms=None)
    for given, known in ((measured, True), (replace(measured, padded=(alone,)), False)):
        items = {item.cause: item for item in conclude(given).budget.items}
        assert items["multiples"].ms > 0
        assert items["multiples"].measured is known


def test_a_roof_that_layers_pass_explains_nothing_and_is_told() -> None:
    moved = 50_000_000
    wide, thin = layer("a", 64, 64, moved=2 * moved), layer("a", 32, 64, moved=moved)
    for bandwidth, waits in ((moved / 1.1, True), (moved / 3, False)):  # bytes a ms
        roof = Roof(macs_per_ms=1e9, bandwidths=((10**9, bandwidth),))
        explanation = conclude(
            Measured(
                "torch", "cpu", 1, times({wide: 2.0}), times({thin: 1.2}), roof, 0.0, 0.001, 20
            )
        )
        assert (explanation.budget.ms("memory") > 0) is waits
        assert (
            any("more than the roof, up to 250%" in line for line in words(explanation))
            is not waits
        )
