"""Mask prediction: the target against the authors' loop, honest counts, what is static of it."""

import copy
from itertools import pairwise

import pytest
import torch
from digit_runs import config
from hypothesis import given, settings
from hypothesis import strategies as st
from small_loops import batch
from small_networks import image, small
from torch import Tensor, nn
from torch.nn import functional as F

import polarprune
from polarprune.cut_records import decided_by_each
from polarprune.dynamic_cost import dynamic_macs, forecast_macs
from polarprune.errors import ConfigError
from polarprune.gate_arithmetic import peaks_of_channels
from polarprune.gates import GatedNetwork
from polarprune.methods import build_method
from polarprune.methods.mask_predictor import MaskHead, heavy_channels
from polarprune.onepass import OnePass, Phases
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.training import train


def _block(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x))
    return s.head(F.relu(x + s.two(F.relu(s.one(x)))))


def _by_loops(strengths: list[float], mass: float) -> list[bool]:
    """get_gt_mask_ratio, one channel after the other."""
    total = sum(strengths)
    order = sorted(range(len(strengths)), key=lambda c: -strengths[c])
    kept, so_far = [False] * len(strengths), 0.0
    for channel in order:
        so_far += strengths[channel] / total
        if so_far > mass:
            break
        kept[channel] = True
    return kept


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.floats(0.05, 0.99))
@settings(max_examples=60)
def test_the_heavy_channels_are_those_of_the_authors_loop(
    strengths: list[float], mass: float
) -> None:
    given_one = torch.tensor([strengths, strengths[::-1]], dtype=torch.float64)
    found = heavy_channels(given_one, mass)
    assert found[0].tolist() == _by_loops(given_one[0].tolist(), mass)
    assert found[1].tolist() == _by_loops(given_one[1].tolist(), mass)


def test_the_example_of_the_poster() -> None:
    strengths = torch.tensor([[5.5, 7.9, 0.3, 8.6, 2.2, 3.1, 0.9]])
    kept = heavy_channels(strengths, 0.95)
    assert int(kept.sum()) == 4
    assert float((strengths * kept).sum() / strengths.sum()) == pytest.approx(0.881, abs=1e-3)


def test_at_a_mass_of_1_all_that_fire_are_kept() -> None:
    assert heavy_channels(torch.tensor([[1.0, 0.0, 1e-3, 1e-9]]), 1.0).tolist() == [
        [True, False, True, False]
    ]


def _searching(mass: float = 0.7, heads: str = "decoupled") -> GatedNetwork:
    gated = polarprune.attach_gates(
        small(_block), image(), method="mask-predictor",
        method_options={"mass": mass, "heads": heads},
    )  # fmt: skip
    gated.search()
    return gated.train()


def test_heat_is_the_peak_of_each_channel_before_it_is_gated() -> None:
    gated = _searching()
    x = image()
    with torch.no_grad():
        for head in gated.method.heads:  # something is closed, and its heat is seen all the same
            head.head.bias.fill_(-1.0)
            head.head.bias[::2] = 1.0
    gated(x)
    net = small(_block).train()
    heat = {
        site.name: gated.units().heat[number][:, first : first + site.units]
        for site, (number, first) in zip(gated.sites, gated._plan.of_site, strict=True)
    }
    stem = F.relu(net.stem(x))
    assert torch.allclose(heat["one"], _seen(gated, x, "one"), atol=1e-5)
    # The stream is read by the block and behind it: the larger of the two counts.
    assert bool((heat["stem"] >= stem.abs().amax((2, 3)).float() - 1e-5).all())
    [block] = [site.name for site in gated.sites if site.kind == "block"]
    assert bool((heat[block] == -1).all())


def _seen(gated: GatedNetwork, x: Tensor, layer: str) -> Tensor:
    """What a layer writes in the gated network itself, behind its activation."""
    found: list[Tensor] = []
    hook = gated.body.get_submodule(layer).register_forward_hook(
        lambda _m, _a, out: found.append(F.relu(out).abs().amax((2, 3)).float())
    )
    gated(x)
    hook.remove()
    return found[-1].detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(5, 4), (5, 4, 6), (5, 4, 6, 3), (5, 4, 1, 1), (5, 1, 6, 3), (5, 4, 2, 3, 3)]
)
def test_peaks_are_the_same_in_every_layout(
    shape: tuple[int, ...], axis: int, dtype: torch.dtype
) -> None:
    if axis >= len(shape):
        axis = 1
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    layouts = [x, x.transpose(0, -1).contiguous().transpose(0, -1)]
    layouts += [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else []
    wanted = [
        [
            max(abs(float(v)) for v in image.select(axis - 1, c).flatten())
            for c in range(shape[axis])
        ]
        for image in x
    ]
    for laid_out in layouts:
        assert peaks_of_channels(laid_out, axis).tolist() == wanted


def test_the_loss_is_the_cross_entropy_of_each_site_and_stops_halfway() -> None:
    gated = _searching()
    gated(image())
    units = gated.units()
    ratio = torch.zeros(())
    found = gated.method.loss(units, ratio, 1.0, 0.2)
    expected = []
    for head, heat in zip(gated.method.heads, units.heat, strict=True):
        first = 0
        for size in head.sizes:
            strengths, logits = heat[:, first : first + size], head.logits[:, first : first + size]
            first += size
            if bool((strengths < 0).any()):
                continue
            total = 0.0
            for n in range(len(strengths)):
                wanted = _by_loops(strengths[n].tolist(), 0.7)
                for c in range(size):
                    p = torch.sigmoid(logits[n, c].double()).item()
                    total -= float(torch.tensor(p if wanted[c] else 1 - p).log())
            expected.append(total / len(strengths))
    assert float(found.detach()) == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert float(gated.method.loss(units, ratio, 1.0, 0.5)) == 0


@pytest.mark.parametrize("heads", ["decoupled", "joint"])
def test_only_joint_heads_train_the_network(heads: str) -> None:
    gated = _searching(heads=heads)
    gated(image())
    gated.method.loss(gated.units(), torch.zeros(()), 1.0, 0.0).backward()
    assert all(head.head.weight.grad is not None for head in gated.method.heads)
    trained = [
        name for name, p in gated.named_parameters()
        if p.grad is not None and "gating" not in name and bool((p.grad != 0).any())
    ]  # fmt: skip
    assert bool(trained) == (heads == "joint")


def test_the_task_trains_no_head() -> None:
    gated = _searching()
    gated(image()).square().mean().backward()
    grads = [head.head.weight.grad for head in gated.method.heads]
    assert all(grad is None or not bool((grad != 0).any()) for grad in grads)


def test_dynamic_macs_are_those_of_each_images_own_network() -> None:
    gated = _searching()
    with torch.no_grad():
        for head in gated.method.heads:
            head.head.weight.normal_(std=30.0)
            head.head.weight -= head.head.weight.mean(1, keepdim=True)  # so that it is the image
            head.head.bias.fill_(0.5)  # that decides
    x = image(6, 3, 8, 8) * torch.linspace(0.2, 5, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    decided = decided_by_each(gated, x)
    expected = []
    for place in range(6):
        alone = copy.deepcopy(gated)
        choices = {
            site.name: own[min(place, len(own) - 1)]
            for site, own in zip(gated.sites, decided, strict=True)
        }
        alone.set_decisions(choices)
        found = polarprune.collapse(alone)
        # The first layer is computed before the gate that looks at its output can close any of it.
        whole, left = gated.body.stem.out_channels, found.stem.out_channels
        assert whole == 8
        early = 8 * 8 * 3 * 9 * (whole - left)
        expected.append(polarprune.count_macs(found, x) + early + gated.gate_macs())
    assert len(set(expected)) > 1, "every image decides alike: nothing dynamic is tested"
    assert gated.gate_macs() > 0
    assert dynamic_macs(gated, decided) == pytest.approx(sum(expected) / 6)


def test_what_is_foreseen_is_the_mean_of_what_images_take_with_their_heavy_channels() -> None:
    """Where layers decide independently of each other; here each image alone, so exactly."""
    gated = _searching(mass=0.6)
    x = image(1, 3, 8, 8)
    gated.eval()(x)
    heat = dict(zip(map(id, gated.gate_modules()), gated.units().heat, strict=True))
    heavy = [
        heavy_channels(heat[id(gate.source)][:, gate.units], 0.6)
        if site.kind == "channel"
        else torch.ones(1, 1, dtype=torch.bool)
        for site, gate in zip(gated.sites, gated.site_gates(), strict=True)
    ]
    twice = [own.expand(2, -1) for own in heavy]
    assert not all(own.all() for own in heavy)
    assert forecast_macs(gated) == pytest.approx(dynamic_macs(gated, twice))


def test_what_is_left_of_a_site_goes_on_being_taught() -> None:
    gated = _searching()
    x = image(4, 3, 8, 8)
    gated(x)
    decisions = {s.name: torch.arange(s.units) > 0 for s in gated.sites if s.kind == "channel"}
    gated.narrow(decisions, x)
    gated.train()(x)
    losses = []
    for head, heat in zip(gated.method.heads, gated.units().heat, strict=True):
        for logits, strength in zip(
            torch.split(head.logits, head.sizes, 1), torch.split(heat, head.sizes, 1), strict=True
        ):
            if bool((strength[:, -1] < 0).all()):
                continue  # a block
            assert bool((strength[:, 0] < 0).all())
            wanted = torch.tensor([_by_loops(row, 0.7) for row in strength[:, 1:].tolist()])
            each = F.binary_cross_entropy_with_logits(
                logits[:, 1:], wanted.to(logits.dtype), reduction="none"
            )
            losses.append(each.mean(0).sum())
    assert len(losses) == len(decisions)
    got = gated.method.loss(gated.units(), torch.zeros(()), 1.0, 0.0)
    torch.testing.assert_close(got, torch.stack(losses).mean(), check_dtype=False)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize("method", ["consensus", "mask-predictor"])
def test_a_gate_looks_at_features_and_not_at_a_parameter(
    shape: tuple[int, ...], method: str
) -> None:
    def compute(s, x: Tensor) -> Tensor:
        y = s.stem(x)
        return s.head(F.relu(s.gamma * s.one(y) + s.two(y)))

    net = small(compute, gamma=nn.Parameter(torch.rand(shape)))
    gated = polarprune.attach_gates(net, image(), method=method)
    gated.search()
    gated.train()(image(4, 3, 8, 8))
    assert all(len(output.values) == 4 for output in gated.outputs())
    gated.method.loss(gated.units(), gated.expected_macs_ratio(), 1.0, 0.0).backward()


def test_where_nothing_can_be_masked_it_is_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ConfigError, match="in this Sequential that method 'mask-predictor'"):
        polarprune.attach_gates(net, torch.zeros(1, 3, 8, 8), method="mask-predictor")
    dense = polarprune.attach_gates(
        net, torch.zeros(1, 3, 8, 8), method="mask-predictor", blocks=False, channels=False
    )
    assert not dense.sites


def test_what_opens_for_one_image_in_a_hundred_stays_and_less_goes() -> None:
    from polarprune.methods import GateRequest

    head = MaskHead(GateRequest(3, 2, (("channel", 3),)))
    with torch.no_grad():
        head.head.weight.zero_()
        head.head.weight[:, 0] = torch.tensor([0.0, 100.0, 100.0])
        head.head.bias.copy_(torch.tensor([-1.0, -70.0, -70.0]))
    often = torch.zeros(200, 2)
    often[:4, 0] = 9.0  # 2 % of the images
    assert (head(often).probability > 0.5).tolist() == [False, True, True]
    often[1:4, 0] = 0.0  # half a per cent
    assert (head(often).probability > 0.5).tolist() == [False, False, False]


def test_blocks_have_no_head_and_stay_open() -> None:
    gated = _searching()
    with torch.no_grad():
        for head in gated.method.heads:
            head.head.bias.fill_(-9.0)
    gated(image())
    for site, output in zip(gated.sites, gated.outputs(), strict=True):
        assert bool((output.values == (1 if site.kind == "block" else 0)).all())


def test_one_pass_is_dynamic_to_the_end_and_then_static() -> None:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(
        polarprune.build_network("resnet20").train(), torch.zeros(2, 3, 8, 8),
        method="mask-predictor", method_options={"mass": 0.8},
    )  # fmt: skip
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05)
    one = OnePass(gated, optimizer, total_steps=20)
    assert one.phases == Phases(search=0.1, settle=1.0)
    for step in range(20):
        images, labels = batch(step)
        (F.cross_entropy(one.network(images), labels) + one.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert one.settled == (step == 20)
        one.step()
    [cut] = one.cuts
    assert cut.max_rel_error < 1e-9
    assert 0 < cut.dynamic_macs < one.dense_macs
    assert 0 < cut.forecast_macs < one.dense_macs
    # Whatever is left for every image is at least what one image asks for.
    assert cut.macs_after >= cut.dynamic_macs


def test_a_run_says_what_is_dynamic_and_what_is_static(tmp_path) -> None:
    result = train(
        config(tmp_path / "run", model="resnet20", method="mask-predictor", mass=0.7, epochs=3,
               target=None)
    )  # fmt: skip
    figures = result.figures
    assert 0 < figures["dynamic_macs_ratio"] <= result.macs_ratio <= 1
    assert 0 < figures["forecast_macs_ratio"] < 1
    assert figures["dynamic_top1"] == RunFolder(tmp_path / "run").cuts()[-1]["top1_before"]
    assert result.train_macs_ratio >= 1  # dense to the end, heads on top: counted


def test_heads_at_rest_are_not_moved_by_momentum() -> None:
    gated = _searching()
    one = OnePass(
        gated, torch.optim.SGD(gated.parameters(), lr=0.01), total_steps=12,
        phases=Phases(search=0, settle=1),
    )  # fmt: skip
    seen = []
    for _ in range(11):
        (one.network(image()).square().mean() + one.loss()).backward()
        seen.append([head.head.weight.detach().clone() for head in gated.method.heads])
        one.step()
    moved = [
        any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in pairwise(seen)
    ]
    assert moved == [True] * 6 + [False] * 4  # the loss ends at half of the search


def test_dense_training_takes_a_target_of_1(tmp_path) -> None:
    result = train(config(tmp_path / "run", method="mask-predictor", target=1.0, epochs=1))
    assert result.macs == result.dense_macs


BAD = {
    "blocks alone": ({"granularity": "block"}, "decides about channels alone"),
    "a target": ({"target": 0.5}, "--target cannot be given with method 'mask-predictor'"),
    "parameters": ({"target_params": 0.5}, "--target-params cannot be given with method"),
    "no mass": ({"mass": 0.0}, "--mass must be above 0 and at most 1, got 0"),
    "too much": ({"mass": 1.5}, "--mass must be above 0 and at most 1, got 1.5"),
    "other heads": ({"heads": "two"}, "--heads must be one of decoupled, joint"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_for_is_one_line(tmp_path, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path / "run", **{"method": "mask-predictor", "target": None, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_mass_belongs_to_no_other_method() -> None:
    with pytest.raises(ConfigError, match="--mass is no option of method 'consensus'"):
        build_method("consensus", {"mass": 0.9})
    gated = polarprune.attach_gates(small(_block), image(), method="mask-predictor")
    with pytest.raises(ConfigError, match="sets the cost itself; leave it out"):
        OnePass(gated, torch.optim.SGD(gated.parameters(), lr=0.1), target=0.5, total_steps=9)
