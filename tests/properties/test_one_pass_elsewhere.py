"""OnePass prunes networks that are not ours: branches, shuffles, channels in the last axis."""

from functools import partial

import pytest
import torch
from known_networks import CLASSES, SIDE, build, distinct
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import polarprune
from polarprune.gating import PooledFeatures
from polarprune.onepass import OnePass, Phases

STEPS, SETTLED = 12, 8
PHASES = Phases(search=0.25, settle=SETTLED / STEPS)
TARGET = 0.7
CUT_ERROR = 1e-9  # the certificate's own bound


def _batch(step: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, side, side, generator=generator)
    return images, torch.randint(0, CLASSES, (4,), generator=generator)


def _float(name: str) -> nn.Module:
    return build(name).float()


def _small_convnext() -> nn.Module:
    """Its MLPs work on (n, height, width, channels)."""
    torch.manual_seed(0)
    stages = [CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)]
    return distinct(ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=CLASSES)).train()


BUILDERS = {
    "shufflenet": partial(_float, "torchvision:shufflenet_v2_x0_5"),
    "googlenet": partial(_float, "torchvision:googlenet"),
    "convnext": _small_convnext,
}


@pytest.mark.parametrize(
    ("name", "half"), [
        pytest.param("shufflenet", True, marks=pytest.mark.study), ("googlenet", False),
        ("convnext", True),
    ],
    ids=["shufflenet in bfloat16", "googlenet", "convnext in bfloat16"],
)  # fmt: skip
def test_other_networks_are_pruned_to_their_target(name: str, half: bool) -> None:
    gated = polarprune.attach_gates(BUILDERS[name](), _batch(0)[0])
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-3, momentum=0.9)
    one = OnePass(gated, optimizer, target=TARGET, total_steps=STEPS, phases=PHASES)
    gates = [gate.gate.logit.bias for gate in gated.gate_modules()]
    start = [bias.detach().clone() for bias in gates]
    for step in range(STEPS):
        images, labels = _batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(one.network(images), labels) + one.loss()
        optimizer.zero_grad()
        loss.backward()
        assert bool(loss.detach().isfinite())
        optimizer.step()
        record = one.step()
        assert (record is not None) == (step + 1 == SETTLED)
    assert not any(torch.equal(was, now) for was, now in zip(start, gates, strict=True))
    [cut] = one.cuts
    assert cut.certificate["passed"]
    assert cut.max_rel_error <= CUT_ERROR
    macs = polarprune.count_macs(one.finish(), _batch(0)[0])
    assert macs == cut.macs_after <= TARGET * gated.circuit.dense_macs
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(one.network.parameters())


def test_gates_look_at_channels_where_they_lie() -> None:
    gated = polarprune.attach_gates(_small_convnext(), _batch(0)[0])
    last = [s for s in gated.sites if gated.analysis.labels.tensors[s.source].axis == 3]
    assert last, "no gate looks at channels in the last axis, so nothing is tested"
    seen: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    nodes = {node.name: node for node in gated.body.graph.nodes}
    pools = {str(n.target): n for n in nodes.values() if str(n.target).startswith("gating.pool")}

    def remember(path: str):
        def hook(module: nn.Module, args: tuple[Tensor], result: Tensor) -> None:
            tensors[path], seen[path] = args[0].detach(), result

        return hook

    for path in pools:
        gated.body.get_submodule(path).register_forward_hook(remember(path))
    gated.search()
    for side in (SIDE, 2 * SIDE):  # the number of features is not that of rows
        gated(_batch(0, side)[0])
        for path, node in pools.items():
            source = str(node.args[0])
            axis = 3 if source in {s.source for s in last} else 1
            channels = tensors[path].movedim(axis, 1).flatten(2).mean(2)
            torch.testing.assert_close(seen[path], channels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((2, 5), 1), ((2, 5, 7), 1), ((2, 7, 3, 5), 3)])
def test_features_are_the_mean_over_all_but_the_channels(shape: tuple[int, ...], axis: int) -> None:
    gated = polarprune.attach_gates(_float("resnet20"), _batch(0)[0])
    pool = PooledFeatures(gated.state, torch.float32, axis)
    x = torch.randn(shape)
    assert pool(x) is None
    gated.search()
    pooled = pool(x)
    assert pooled is not None
    expected = torch.stack([x.select(axis, c).reshape(2, -1).mean(1) for c in range(5)], dim=1)
    torch.testing.assert_close(pooled, expected)
