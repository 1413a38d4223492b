"""From scores to decisions: aligned, valid, at or under the target; what is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import all_open, image, small
from torch import Tensor, nn

import polarprune
from polarprune.decisions import check_reachable, choose_decisions, macs_of
from polarprune.errors import ConfigError
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import count_parameters
from polarprune.targets import parameters_budget


def _block(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x))
    return s.head(F.relu(x + s.two(F.relu(s.one(x)))))


@pytest.fixture(scope="module")
def gated() -> GatedNetwork:
    return polarprune.attach_gates(small(_block), image())


def _scores(gated: GatedNetwork, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(site.units, generator=generator) for site in gated.sites]


def _least(gated: GatedNetwork, align: int) -> float:
    """Kept share of the smallest network: blocks closed, one aligned handful a site."""
    smallest = []
    for site in gated.sites:
        count = 0 if site.kind == "block" else min(site.units, align)
        smallest.append(torch.arange(site.units) < count)
    return macs_of(gated.circuit, smallest) / gated.circuit.dense_macs


@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.sampled_from([1, 2, 4, 3]))
@settings(max_examples=15)
def test_the_target_is_a_bound_and_counts_are_aligned(
    gated: GatedNetwork, seed: int, target: float, align: int
) -> None:
    scores = _scores(gated, seed)
    if target < _least(gated, align):
        with pytest.raises(ConfigError, match="cannot be reached"):
            choose_decisions(gated.analysis, scores, align, gated.macs_budget(target))
        return
    chosen = choose_decisions(gated.analysis, scores, align, gated.macs_budget(target))
    in_order = [chosen[s.name] for s in gated.sites]
    assert macs_of(gated.circuit, in_order) <= target * gated.circuit.dense_macs
    for site, score, opened in zip(gated.sites, scores, in_order, strict=True):
        if site.kind == "channel":
            count = int(opened.sum())
            assert count >= 1
            assert count % align == 0 or count == site.units
            if count < site.units:
                assert float(score[opened].min()) >= float(score[~opened].max())


@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.sampled_from([1, 2, 4, 3]), st.booleans())
@settings(max_examples=30)
def test_what_a_target_leaves_free_is_less_than_anything_closed_would_cost(
    gated: GatedNetwork, seed: int, target: float, align: int, tied: bool
) -> None:
    scores = _scores(gated, seed)
    if tied:  # many equal scores are one step of a threshold
        scores = [score.round() for score in scores]
    target = max(target, _least(gated, align))
    chosen = choose_decisions(gated.analysis, scores, align, gated.macs_budget(target))
    bound = target * gated.circuit.dense_macs
    assert macs_of(gated.circuit, list(chosen.values())) <= bound
    if bound - macs_of(gated.circuit, list(chosen.values())) <= 0.02 * gated.circuit.dense_macs:
        return
    for site in gated.sites:  # more than 2 % below: then no block and no handful fits
        for more in _one_step_more(chosen[site.name], align):
            costs = macs_of(gated.circuit, list((chosen | {site.name: more}).values()))
            free = costs == macs_of(gated.circuit, list(chosen.values()))
            assert costs > bound or free, site.name  # channels of a closed block cost nothing


def _one_step_more(decision: Tensor, align: int) -> list[Tensor]:
    closed = torch.nonzero(~decision).flatten()[:align]
    if not len(closed):
        return []
    more = decision.clone()
    more[closed] = True
    return [more]


def test_a_closed_block_opens_again_where_its_closing_went_far_below_the_target(
    gated: GatedNetwork,
) -> None:
    scores = [
        torch.full((site.units,), 0.4 if site.kind == "block" else 0.1) for site in gated.sites
    ]
    chosen = choose_decisions(gated.analysis, scores, 1, gated.macs_budget(0.9))
    blocks = [chosen[site.name] for site in gated.sites if site.kind == "block"]
    assert blocks, "the network has a block"
    assert all(bool(block) for block in blocks)


def test_without_a_target_the_likelier_side_wins(gated: GatedNetwork) -> None:
    scores = [torch.linspace(0, 1, site.units) for site in gated.sites]
    chosen = choose_decisions(gated.analysis, scores, 1, None)
    assert chosen["stem"].tolist() == [False] * 4 + [True] * 4


def test_equal_scores_give_equal_decisions(gated: GatedNetwork) -> None:
    scores = [torch.full((site.units,), 0.3) for site in gated.sites]
    chosen = choose_decisions(gated.analysis, scores, 2, None)
    assert chosen["stem"].tolist() == [True] * 2 + [False] * 6


BAD = {
    "unknown site": ({"nowhere": torch.ones(1)}, "there is no gate site 'nowhere'"),
    "too few units": ({"stem": torch.ones(3)}, "'stem' has 8 units, got a decision of shape"),
    "wrong rank": ({"stem": torch.ones(8, 1)}, "'stem' has 8 units"),
    "starved stream": ({"stem": torch.zeros(8)}, "'stem'"),
    "starved block": ({"one": torch.zeros(8)}, "'one'"),
    "starved head": ({"last": torch.zeros(6)}, "'last'"),
}


@pytest.mark.parametrize(("decisions", "match"), BAD.values(), ids=BAD)
def test_bad_decisions_are_a_value_error_of_one_line(gated: GatedNetwork, decisions, match) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        gated.set_decisions(decisions)
    assert "\n" not in str(caught.value)


def test_a_refused_set_leaves_the_gates_as_they_were(gated: GatedNetwork) -> None:
    gated.set_decisions(all_open(gated, stem=[1]))
    with pytest.raises(ValueError, match="stem"):
        gated.set_decisions({"stem": torch.zeros(8)})
    assert gated.decisions()["stem"].tolist() == [True, False] + [True] * 6


def test_decisions_come_back_as_they_were_set(gated: GatedNetwork) -> None:
    wanted = all_open(gated, stem=[2], one=[0, 7])
    gated.set_decisions(wanted)
    assert all(torch.equal(gated.decisions()[n], wanted[n]) for n in wanted)
    gated.set_decisions({})
    assert all(bool(d.all()) for d in gated.decisions().values())


@given(st.integers(0, 10**6), st.floats(0.35, 1.0), st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_a_budget_of_parameters_is_a_bound_on_what_is_left(
    gated: GatedNetwork, seed: int, target: float, align: int
) -> None:
    gated.search()
    budget = parameters_budget(gated, target)
    chosen = choose_decisions(gated.analysis, _scores(gated, seed), align, budget)
    gated.set_decisions(chosen)
    left = count_parameters(polarprune.collapse(gated))
    dense = count_parameters(gated.plain())
    assert left <= target * dense
    assert left == budget.cost(list(chosen.values()))
    if target * dense - left > 0.02 * dense:  # then nothing that is closed would fit
        for site in gated.sites:
            for more in _one_step_more(chosen[site.name], align):
                cost = budget.cost(list((chosen | {site.name: more}).values()))
                assert cost > budget.bound or cost == left, site.name


def test_expected_parameters_are_the_weights_of_what_is_left() -> None:
    net = polarprune.build_network("torchvision:mobilenet_v2", num_classes=10)
    gated = polarprune.attach_gates(net.eval(), torch.zeros(1, 3, 32, 32))
    budget = parameters_budget(gated, 0.5)
    for seed in range(3):
        decisions = [score > 0.4 for score in _scores(gated, seed)]
        for site, decision in zip(gated.sites, decisions, strict=True):
            if site.kind == "channel":
                decision[0] = True
        gated.set_decisions({s.name: d for s, d in zip(gated.sites, decisions, strict=True)})
        small = polarprune.collapse(gated)
        mixing = (torch.nn.Conv2d, torch.nn.Linear)
        counted = [
            sum(m.weight.numel() for m in network.modules() if isinstance(m, mixing))
            for network in (small, gated.plain())
        ]
        expected = budget.expected(torch.cat(decisions).double())
        assert float(expected) == pytest.approx(counted[0] / counted[1], rel=1e-9)


def test_a_budget_of_parameters_that_cannot_be_reached_says_what_can(gated: GatedNetwork) -> None:
    with pytest.raises(ConfigError, match=r"--target-params 0.001 cannot be reached: the smallest"):
        check_reachable(gated.analysis, 1, parameters_budget(gated, 0.001))


def test_only_what_would_help_is_advised(gated: GatedNetwork) -> None:
    budget = parameters_budget(gated, 0.001)
    for align, advice in (
        (1, "choose a larger target$"),
        (8, "target or a smaller --align than 8$"),
    ):
        with pytest.raises(ConfigError, match=advice):
            check_reachable(gated.analysis, align, budget)
    channels = polarprune.attach_gates(small(_block), image(), blocks=False)
    with pytest.raises(ConfigError, match=r"choose a larger target or --granularity both$"):
        check_reachable(channels.analysis, 1, channels.macs_budget(1e-9))


def test_a_block_goes_with_the_channels_that_it_cannot_do_without(gated: GatedNetwork) -> None:
    names = [site.name for site in gated.sites]
    block, inner = (names.index(n) for n in (gated.sites[0].name, "one"))
    assert gated.analysis.cells == {block: [inner]}
    scores = [torch.full((site.units,), 0.9) for site in gated.sites]
    scores[inner] = torch.full((8,), 0.2)
    assert not choose_decisions(gated.analysis, scores, 1, None)[names[block]]
    scores[inner][3] = 0.6
    assert choose_decisions(gated.analysis, scores, 1, None)[names[block]]


# How a branch is made of what reads the inner channels; whether closing them all closes the block.
CELLS = {
    "one way": (lambda s, y: s.two(y), True),
    "two ways that both read them": (lambda s, y: s.two(y) + s.more(y), True),
    "a way around": (lambda s, y: s.two(y) * torch.sigmoid(s.more(y)), True),
    "read with others": (lambda s, y: s.wide(torch.cat([y, s.side(y)], 1)), False),
}


@pytest.mark.parametrize("case", CELLS)
def test_which_channels_a_branch_cannot_do_without(case: str) -> None:
    make, alone = CELLS[case]

    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        return s.head(F.relu(x + make(s, F.relu(s.one(x)))))

    found = polarprune.attach_gates(
        small(
            compute,
            more=nn.Conv2d(8, 8, 1), side=nn.Conv2d(8, 8, 1), wide=nn.Conv2d(16, 8, 1),
        ),
        image(),
    )  # fmt: skip
    names = [site.name for site in found.sites]
    (block,) = found.analysis.additions.keys() & set(found.analysis.cells) or (None,)
    assert (block is not None and names.index("one") in found.analysis.cells[block]) == alone


def test_channels_beside_another_way_are_not_what_a_branch_needs() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        excited = s.one(x) * torch.sigmoid(s.more(F.relu(s.side(x))))
        return s.head(F.relu(x + s.two(excited)))

    found = polarprune.attach_gates(
        small(compute, more=nn.Conv2d(8, 8, 1), side=nn.Conv2d(8, 8, 1)), image()
    )
    names = [site.name for site in found.sites]
    [inside] = found.analysis.cells.values()
    assert names.index("side") not in inside
