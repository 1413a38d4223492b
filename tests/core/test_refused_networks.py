"""Networks and inputs that are refused: in one line, and nothing else is printed."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import Sign, image, small
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import polarprune
from polarprune.errors import Refused

Compute = Callable[..., object]


def _without_autocast(s, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return s.head(s.stem(x))


def _grad_by_mode(s, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(False):
        x = s.stem(x)
    return s.head(x)


def _hand_made_depth(s, x: Tensor) -> Tensor:
    if s.training and torch.rand(1).item() < 0.2:
        return s.head(s.stem(x))
    return s.head(s.one(s.stem(x)))


def _python_depth(s, x: Tensor) -> Tensor:
    if s.training and random.random() < 0.2:
        return s.head(s.stem(x))
    return s.head(s.one(s.stem(x)))


REFUSED: dict[str, tuple[Compute, dict[str, object], str]] = {
    "a backward of its own": (
        lambda s, x: s.head(Sign.apply(s.stem(x))), {}, "backward of an autograd.Function would be"
    ),
    "no autocast": (_without_autocast, {}, "torch.autocast.. would be lost"),
    "no gradients": (_grad_by_mode, {}, "torch.set_grad_enabled.. would be lost"),
    "random code": (_hand_made_depth, {}, "draws random numbers in its own code"),
    "random Python code": (_python_depth, {}, "draws random numbers in its own code"),
    "a branch on the number of images": (
        lambda s, x: s.head(F.relu(s.stem(x)) if x.shape[0] < 3 else s.stem(x)), {},
        "a branch on the number of images",
    ),
    "the number of images by len": (
        lambda s, x: s.stem(x).view(len(x), -1), {}, "write x.shape.0."
    ),
    "a weight that changes as it is read": (
        lambda s, x: s.head(s.one(s.stem(x))),
        {"one": parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))},
        "the weight of one changes as it is read",
    ),
    "a name that the gates need": (
        lambda s, x: s.head(s.gating(s.stem(x))), {"gating": nn.Conv2d(8, 8, 1)}, "name 'gating'"
    ),
    "a name that torch.fx needs": (
        lambda s, x: s.head(s.code(s.stem(x))), {"code": nn.Conv2d(8, 8, 1)}, "name 'code'"
    ),
    "a word of Python": (
        lambda s, x: s.head(s.d["in"](s.stem(x))),
        {"d": nn.ModuleDict({"in": nn.Conv2d(8, 8, 1)})},
        "torch.fx cannot have the name 'in' in d.in; rename it",
    ),
    "outputs of another kind in training": (
        lambda s, x: (s.head(s.stem(x)), x) if s.training else s.head(s.stem(x)),
        {},
        "has other outputs in training mode than in evaluation mode; remove control flow",
    ),
    "in place without another form": (
        lambda s, x: s.head(s.stem(x).permute(0, 1, 2, 3).fill_(0.5)),
        {},
        "calls fill_, which works in place only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_odd_networks_are_refused_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    compute, layers, words = REFUSED[name]
    net = small(compute, **layers)
    state = torch.get_rng_state()
    with pytest.raises(Refused, match=words) as caught:
        polarprune.attach_gates(net, image())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert torch.equal(torch.get_rng_state(), state)


class OwnMode(nn.Module):
    """A batch norm that stays frozen, the way of detection libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x)
        return self.features


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def _keeps() -> nn.Module:
    net = Keeps().double()
    net(image())
    return net


BAD_INPUT: dict[str, tuple[Callable[[], nn.Module], object, str]] = {
    "a class": (lambda: nn.Conv2d, image(), "a network is an nn.Module, got type"),
    "no numbers": (lambda: nn.Conv2d(3, 3, 1, device="meta"), image(), "no numbers to compare"),
    "a list": (lambda: nn.Conv2d(3, 3, 1).double(), [1], "must be a tensor .*, got list"),
    "one value": (lambda: nn.Conv2d(3, 3, 1).double(), torch.zeros(3), "must be a batch"),
    "no image": (lambda: nn.Conv2d(3, 3, 1).double(), image()[:0], "must be a batch"),
    "channels": (
        lambda: nn.Conv2d(3, 3, 1).double(), image(2, 4, 8, 8), "cannot take the example input"
    ),
    "two inputs": (TwoInputs, image(), "cannot take the example input .*argument: 'y'"),
    "a kept result": (_keeps, image(), "Keeps cannot be copied"),
    "a mode of its own": (lambda: OwnMode().double(), image(), "norm keeps a mode of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, example, words = BAD_INPUT[name]
    with pytest.raises(Refused, match=words) as caught:
        polarprune.attach_gates(make(), example)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(Refused, match=r"leave it first"):
        polarprune.attach_gates(nn.Conv2d(3, 3, 1), torch.zeros(2, 3, 8, 8))
