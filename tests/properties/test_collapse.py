"""For random decisions on every site of real networks: what is cut is exactly what was closed."""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import (
    Decisions,
    Wiring,
    closed,
    counted_macs,
    largest_relative_error,
    random_decisions,
    randomise,
    wiring_of,
    without_dropout,
)
from torch import Tensor, nn

import polarprune
from polarprune.collapsing import collapse_with_origins
from polarprune.decisions import macs_of
from polarprune.gates import GatedNetwork
from polarprune.graph.movement import pad_amounts

# The design's bound for float64: only the order of summation differs.
EXACT = 1e-9
# Gradients go through the same sums twice and through the batch statistics' own derivative.
EXACT_GRADIENT = 1e-8
# float32 over 20 to 60 layers, two implementations of a convolution.
FLOAT32_RTOL = 1e-3

SIZES = {
    "resnet20": 32,
    "resnet56": 32,
    "torchvision:resnet18": 64,
    "torchvision:mobilenet_v2": 64,
}
STUDIES = ("resnet56", "torchvision:resnet18")
networks = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.study) if n in STUDIES else n for n in SIZES],
)


@dataclass(frozen=True)
class Case:
    """Which units are open: a seed, and the shares of channels and of blocks."""

    seed: int
    channels: float
    blocks: float


NOTHING_CLOSED = Case(0, 1.0, 1.0)
ALL_BLOCKS_CLOSED = Case(1, 1.0, 0.0)
ONE_CHANNEL_LEFT = Case(2, 0.0, 1.0)
EVERYTHING_BUT_ONE_CHANNEL = Case(3, 0.0, 0.0)
TYPICAL = Case(4, 0.5, 0.6)
CASES = {
    "nothing closed": NOTHING_CLOSED,
    "all blocks closed": ALL_BLOCKS_CLOSED,
    "one channel left": ONE_CHANNEL_LEFT,
    "one channel left and all blocks closed": EVERYTHING_BUT_ONE_CHANNEL,
    "half of the channels": TYPICAL,
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
drawn = st.builds(
    Case, st.integers(10, 10**6), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([0.3, 0.8])
)


@dataclass(frozen=True)
class Prepared:
    net: nn.Module
    gated: GatedNetwork
    wiring: Wiring
    x: Tensor


@cache
def prepared(name: str) -> Prepared:
    """Built once; tests leave the network's weights and statistics as they are."""
    torch.manual_seed(0)
    net = randomise(polarprune.build_network(name, num_classes=10)).double()
    x = torch.randn(2, 3, SIZES[name], SIZES[name], dtype=torch.float64)
    return Prepared(net, polarprune.attach_gates(net, x), wiring_of(name, net), x)


def decide(name: str, case: Case) -> tuple[Prepared, Decisions]:
    case_of = prepared(name)
    decisions = random_decisions(case_of.gated.sites, case.seed, case.channels, case.blocks)
    case_of.gated.set_decisions(decisions)
    return case_of, decisions


@cache
def collapsed(name: str, case: Case) -> tuple[Any, Any]:
    """(small network in evaluation mode, origins)"""
    case_of, _ = decide(name, case)
    small, cut = collapse_with_origins(case_of.gated.eval())
    return small, cut.origins


def test_the_reference_knows_every_site() -> None:
    for name in SIZES:
        case_of = prepared(name)
        read = {site for units in case_of.wiring.reads.values() for site, _ in units}
        assert {s.name for s in case_of.gated.sites if s.kind == "channel"} == read
        blocks = [s.name for s in case_of.gated.sites if s.kind == "block"]
        assert blocks == case_of.wiring.blocks


@networks
@given(case=drawn)
@example(case=NOTHING_CLOSED)
@example(case=ALL_BLOCKS_CLOSED)
@example(case=ONE_CHANNEL_LEFT)
@example(case=EVERYTHING_BUT_ONE_CHANNEL)
@settings(max_examples=2)
def test_collapse_equals_the_masked_and_the_frozen_network(name: str, case: Case) -> None:
    case_of, decisions = decide(name, case)
    small, _ = collapsed(name, case)
    with torch.no_grad():
        with closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
            expected = masked(case_of.x)
        frozen = case_of.gated.eval()(case_of.x)
        got = small.eval()(case_of.x)
    assert float(expected.abs().max()) > 1e-3, "the comparison would show nothing"
    assert largest_relative_error(expected, frozen) <= EXACT
    assert largest_relative_error(expected, got) <= EXACT
    expected_macs = macs_of(case_of.gated.circuit, [decisions[s.name] for s in case_of.gated.sites])
    assert expected_macs == counted_macs(small, case_of.x)


# resnet20 shows the rest at a third of the time.
trained = pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{what}")
        for name in SIZES
        for what, case in CASES.items()
        if name != "resnet56" or case in (TYPICAL, EVERYTHING_BUT_ONE_CHANNEL)
    ],
)


@trained
def test_training_goes_on_from_where_the_masked_network_was(name: str, case: Case) -> None:
    case_of, decisions = decide(name, case)
    small, origins = collapsed(name, case)
    small = without_dropout(copy.deepcopy(small).train())
    original = without_dropout(copy.deepcopy(case_of.net).train())
    with closed(original, case_of.wiring, decisions) as masked:
        expected = masked(case_of.x)
        expected.square().mean().backward()
    got = small(case_of.x)
    got.square().mean().backward()
    assert largest_relative_error(expected, got) <= EXACT

    gradients = {n: p.grad for n, p in original.named_parameters()}
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for parameter_name, parameter in small.named_parameters():
        origin = origins[parameter_name]
        kept = origin.slice(gradients[origin.name])
        assert parameter.grad is not None, parameter_name
        error = float((kept - parameter.grad).abs().max())
        assert error <= EXACT_GRADIENT * largest, parameter_name
    buffers = dict(original.named_buffers())
    for buffer_name, buffer in small.named_buffers():
        kept = origins[buffer_name].slice(buffers[origins[buffer_name].name])
        torch.testing.assert_close(buffer, kept, rtol=EXACT, atol=EXACT)


@networks
@cases
def test_every_tensor_is_the_kept_part_of_an_old_one(name: str, case: Case) -> None:
    case_of = prepared(name)
    small, origins = collapsed(name, case)
    old = case_of.net.state_dict()
    new = small.state_dict()
    assert set(origins) == set(new)
    for tensor_name, tensor in new.items():
        origin = origins[tensor_name]
        assert torch.equal(origin.slice(old[origin.name]), tensor), tensor_name


@pytest.mark.parametrize("case", [TYPICAL, EVERYTHING_BUT_ONE_CHANNEL], ids=["half", "least"])
@networks
def test_three_ways_of_counting_macs_agree(name: str, case: Case) -> None:
    case_of, decisions = decide(name, case)
    small, _ = collapsed(name, case)
    expected = macs_of(case_of.gated.circuit, [decisions[s.name] for s in case_of.gated.sites])
    assert expected == polarprune.count_macs(small, case_of.x) == counted_macs(small, case_of.x)


@networks
def test_the_price_of_a_unit_is_what_closing_it_alone_saves(name: str) -> None:
    gated = prepared(name).gated
    for site in gated.sites:
        decisions = [torch.ones(s.units, dtype=torch.bool) for s in gated.sites]
        decisions[gated.sites.index(site)][-1] = False
        saved = gated.circuit.dense_macs - macs_of(gated.circuit, decisions)
        assert saved == site.unit_macs, site.name


@pytest.mark.parametrize("case", [TYPICAL, EVERYTHING_BUT_ONE_CHANNEL], ids=["half", "least"])
@networks
def test_collapsing_twice_changes_nothing(name: str, case: Case) -> None:
    small, _ = collapsed(name, case)
    again = polarprune.collapse(small)
    assert _graph(again) == _graph(small)
    first, second = small.state_dict(), again.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[n], second[n]) for n in first)


def _graph(network: Any) -> list[tuple[str, ...]]:
    return [(n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in network.graph.nodes]


@pytest.mark.parametrize("name", [name for name in SIZES if name not in STUDIES])
def test_a_small_network_can_be_gated_and_cut_again(name: str) -> None:
    small, _ = collapsed(name, TYPICAL)
    x = prepared(name).x
    gated = polarprune.attach_gates(small, x)
    gated.set_decisions(random_decisions(gated.sites, 5, 0.7, 0.7))
    smaller = polarprune.collapse(gated)
    with torch.no_grad():
        assert largest_relative_error(gated.eval()(x), smaller.eval()(x)) <= EXACT
    assert polarprune.count_macs(smaller, x) < polarprune.count_macs(small, x)


@networks
def test_onnx_runtime_agrees_with_the_collapsed_network(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    write_onnx = pytest.importorskip("polarprune_export").write_onnx
    case = EVERYTHING_BUT_ONE_CHANNEL if name == "resnet56" else TYPICAL
    small = copy.deepcopy(collapsed(name, case)[0]).float().eval()
    x = prepared(name).x.float()
    write_onnx(small, tmp_path / "model.onnx", x)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = small(x).numpy()
    assert np.abs(got - expected).max() <= FLOAT32_RTOL * np.abs(expected).max()


_LOADER = """
import sys, torch, polarprune
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
inputs = load_file(sys.argv[1] + "/inputs")
outputs = {}
for place, x in inputs.items():
    network = polarprune.load_network(sys.argv[1] + "/" + place)
    with torch.no_grad():
        outputs[place] = network(x)
save_file(outputs, sys.argv[1] + "/outputs")
"""


def test_a_fresh_process_loads_networks_with_bit_equal_outputs(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    chosen = [(name, TYPICAL) for name in SIZES]
    chosen += [("resnet20", EVERYTHING_BUT_ONE_CHANNEL), ("resnet20", NOTHING_CLOSED)]
    inputs, expected = {}, {}
    for place, (name, case) in enumerate(chosen):
        small, _ = collapsed(name, case)
        polarprune.save_network(small, tmp_path / str(place))
        inputs[str(place)] = prepared(name).x.clone()  # one file holds no tensor twice
        with torch.no_grad():
            expected[str(place)] = small.eval()(prepared(name).x)
    save_file(inputs, tmp_path / "inputs")
    subprocess.run([sys.executable, "-c", _LOADER, str(tmp_path)], check=True)
    outputs = load_file(tmp_path / "outputs")
    for place, output in expected.items():
        assert torch.equal(output, outputs[place]), chosen[int(place)]
    document = json.loads((tmp_path / "0" / "network.json").read_text())
    assert document["schema"] == 1


def test_zero_only_channels_vanish_when_all_widening_blocks_close() -> None:
    case_of = prepared("resnet20")
    decisions = {s.name: torch.ones(s.units, dtype=torch.bool) for s in case_of.gated.sites}
    for stage in (2, 3):
        for block in range(3):
            decisions[f"layer{stage}.{block}"] = torch.tensor([False])
    case_of.gated.set_decisions(decisions)
    small = polarprune.collapse(case_of.gated.eval())
    assert small.linear.in_features == 16
    assert not [n for n in small.graph.nodes if n.target is nn.functional.pad]
    with torch.no_grad(), closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
        assert largest_relative_error(masked(case_of.x), small(case_of.x)) <= EXACT


def test_padding_shrinks_with_the_channels_it_adds() -> None:
    case_of = prepared("resnet20")
    decisions = {s.name: torch.ones(s.units, dtype=torch.bool) for s in case_of.gated.sites}
    decisions["layer2.0.conv2"][:3] = False  # three of the eight that come before the old ones
    case_of.gated.set_decisions(decisions)
    small = polarprune.collapse(case_of.gated.eval())
    first, second = (pad_amounts(n) for n in small.graph.nodes if n.target is nn.functional.pad)
    assert first == (0, 0, 0, 0, 5, 8)
    assert second == (0, 0, 0, 0, 16, 16)


@networks
def test_decisions_that_starve_a_live_layer_name_the_site(name: str) -> None:
    gated, wiring = prepared(name).gated, prepared(name).wiring
    only = {units[0][0] for units in wiring.reads.values() if len({s for s, _ in units}) == 1}
    assert only
    for site in [s for s in gated.sites if s.name in only]:
        with pytest.raises(ValueError, match=f"'{site.name}'") as caught:
            gated.set_decisions({site.name: torch.zeros(site.units, dtype=torch.bool)})
        assert "\n" not in str(caught.value)


def test_new_channels_of_a_stage_may_all_close() -> None:
    case_of, decisions = decide("resnet20", NOTHING_CLOSED)
    decisions["layer3.0.conv2"] = torch.zeros(32, dtype=torch.bool)  # option A: the old ones stay
    case_of.gated.set_decisions(decisions)
    small = polarprune.collapse(case_of.gated.eval())
    assert small.linear.in_features == 32
    with torch.no_grad(), closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
        assert largest_relative_error(masked(case_of.x), small(case_of.x)) <= EXACT


@pytest.mark.parametrize("name", ["resnet20", "torchvision:mobilenet_v2"])
def test_a_closed_block_may_have_all_its_inner_channels_closed(name: str) -> None:
    case_of, decisions = decide(name, TYPICAL)
    for block in case_of.wiring.blocks:
        decisions[block] = torch.tensor([False])
        inner = [s for s in decisions if s.startswith(f"{block}.conv1")]
        inner += [s for s in decisions if s == f"{block}.conv.0.0"]
        for site in inner:
            decisions[site] = torch.zeros_like(decisions[site])
    case_of.gated.set_decisions(decisions)
    small = polarprune.collapse(case_of.gated.eval())
    with torch.no_grad(), closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
        assert largest_relative_error(masked(case_of.x), small.eval()(case_of.x)) <= EXACT


def test_the_input_network_is_untouched() -> None:
    case_of = prepared("resnet20")
    net = copy.deepcopy(case_of.net).train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    gated = polarprune.attach_gates(net, case_of.x)
    body = {n: t.clone() for n, t in gated.state_dict().items() if "frozen" not in n}
    gated.set_decisions(random_decisions(gated.sites, 1, 0.5))
    polarprune.certify(gated, polarprune.collapse(gated), case_of.x)
    after = net.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(torch.equal(body[n], gated.state_dict()[n]) for n in body)
    assert net.training
    assert gated.training


# The check above can fail: each of these breaks one rule and has to be noticed.


def _error_with(decisions: Decisions, case_of: Prepared, gated: GatedNetwork) -> float:
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated.eval())
    with torch.no_grad(), closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
        return largest_relative_error(masked(case_of.x), small.eval()(case_of.x))


def test_a_wrongly_kept_index_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from polarprune.graph.slicing import LayerSlicer

    case_of, decisions = decide("resnet20", TYPICAL)
    true = LayerSlicer.per_channel

    def shifted(self: Any, layer: str, kept: np.ndarray) -> None:
        count = self.root.get_submodule(layer).num_features
        true(self, layer, kept if len(kept) == count else np.arange(len(kept)))

    monkeypatch.setattr(LayerSlicer, "per_channel", shifted)
    assert _error_with(decisions, case_of, case_of.gated) > EXACT


def test_a_gate_missing_at_one_reader_would_be_noticed() -> None:
    case_of, decisions = decide("resnet20", TYPICAL)
    gated = copy.deepcopy(case_of.gated)
    gated.set_decisions(decisions)
    with torch.no_grad(), closed(case_of.net.eval(), case_of.wiring, decisions) as masked:
        expected = masked(case_of.x)
        assert largest_relative_error(expected, gated.eval()(case_of.x)) <= EXACT
        node = next(n for n in gated.body.graph.nodes if str(n.target) == "gating.channels_0")
        node.replace_all_uses_with(node.args[0])
        gated.body.recompile()
        assert largest_relative_error(expected, gated(case_of.x)) > EXACT


def test_untied_additions_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from polarprune.graph.label_pass import LabelPass

    case_of = prepared("resnet20")
    true = LabelPass._binary

    def untied(self: Any, node: Any, module: Any) -> Any:
        tie = self.labels.tie
        self.labels.tie = lambda *_: None
        try:
            return true(self, node, module)
        finally:
            self.labels.tie = tie

    monkeypatch.setattr(LabelPass, "_binary", untied)
    gated = polarprune.attach_gates(case_of.net.eval(), case_of.x)
    assert len(gated.sites) != len(case_of.gated.sites)
    decisions = random_decisions(gated.sites, 0, 0.5, 1.0)
    with pytest.raises((RuntimeError, AssertionError, ValueError, IndexError)):
        _check_cut(gated, decisions, case_of.x)


def _check_cut(gated: GatedNetwork, decisions: Decisions, x: Tensor) -> None:
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated.eval())
    with torch.no_grad():
        assert largest_relative_error(gated(x), small(x)) <= EXACT


def test_a_cost_that_ignores_liveness_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from polarprune.graph.liveness import Live, Liveness

    case_of, decisions = decide("resnet20", ALL_BLOCKS_CLOSED)
    small, _ = collapsed("resnet20", ALL_BLOCKS_CLOSED)
    monkeypatch.setattr(
        Liveness, "evaluate", lambda self, p: Live({name: 1.0 for name, _, _ in self.nodes}, {}, {})
    )
    expected = macs_of(case_of.gated.circuit, [decisions[s.name] for s in case_of.gated.sites])
    assert expected != counted_macs(small, case_of.x)
