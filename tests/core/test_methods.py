"""How a method is found: its own file, somebody else's class, or a name that nobody knows."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from digit_runs import config

from polarprune import methods
from polarprune.attaching import attach_gates
from polarprune.errors import ConfigError, PolarpruneError
from polarprune.methods import build_method, called, method_names
from polarprune.methods.consensus import Consensus
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.onepass import OnePass
from polarprune.phases import Phases
from polarprune.runs import training

ROOT = Path(__file__).parents[2]
OWN = sorted(
    path.stem.replace("_", "-")
    for path in Path(methods.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "protocol")
)


@pytest.mark.parametrize("name", OWN)
def test_a_method_has_the_name_of_its_file(name: str) -> None:
    assert name in method_names()
    assert build_method(name).name == name


def test_a_method_of_somebody_elses_trains_and_needs_no_line_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "examples" / "methods")
    file = Path("taylor.py").read_text()
    assert len(file.splitlines()) < 60
    result = training.train(config(tmp_path / "run", method="taylor:Taylor", epochs=2))
    assert 0.45 < result.macs_ratio <= 0.5
    wanted = subprocess.run(
        ["git", "grep", "-il", "taylor", "--", "polarprune", "export", "deploy"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wanted.stdout == ""


def test_taylor_importance_is_the_squared_gradient_of_a_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "methods"))
    from taylor import TaylorGate

    gate = TaylorGate(3)
    values = gate(torch.zeros(1, 0)).values
    (values * torch.tensor([[1.0, -2.0, 3.0]])).sum().backward()
    assert gate.score.tolist() == pytest.approx([0.05 * 1, 0.05 * 4, 0.05 * 9])
    assert gate(torch.zeros(1, 0)).probability.tolist() == pytest.approx([1 / 9, 4 / 9, 1])


def test_random_is_a_small_file_and_needs_no_line_elsewhere() -> None:
    file = Path(methods.__file__).parent / "random.py"
    assert len(file.read_text().splitlines()) < 60
    for other in Path(methods.__file__).parents[1].rglob("*.py"):
        if other != file:
            text = other.read_text()
            assert "RandomControl" not in text, other
            assert "methods.random" not in text, other


def test_no_module_of_the_chain_knows_a_method() -> None:
    names = "|".join(OWN)
    known = re.compile(rf"Consensus\(|Relaxation\(|[!=]= \"({names})\"|isinstance\(\w*\.?method,")
    folders = (ROOT / name for name in ("polarprune", "export", "deploy"))
    for other in (path for folder in folders for path in folder.rglob("*.py")):
        if other.parent != Path(methods.__file__).parent:
            text = other.read_text()
            assert not known.search(text), other


BAD = {
    "nobody knows it": ("wisdom", {}, "--method must be one of consensus"),
    "no such module": ("no_such_module:M", {}, "cannot import 'no_such_module'"),
    "no such name": ("json:Nothing", {}, "json has no callable 'Nothing'"),
    "no method": ("json:JSONDecoder", {}, "is no subclass of polarprune.methods.Method"),
    "half a method": ("polarprune.methods:Method", {}, "does not define loss, make_gates"),
    "an option of another": ("consensus", {"ejector": "gaussian"}, "--ejector is no option of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_method_is_one_line(case: str) -> None:
    name, options, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as raised:
        build_method(name, options)
    assert "\n" not in str(raised.value)


# A method of somebody else's with a place for a mistake in each of its parts.
MINE = """
import torch
from torch import nn
from polarprune.methods import GateOutput, Method

class Gate(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.units = units

    def forward(self, pooled):
        units = self.units
        {forward}
        ones = torch.ones(units)
        return GateOutput(ones.unsqueeze(0), ones, ones)

class Bad(Method):
    watches = False

    def make_gates(self, requests, parameter_budget):
        gates = [Gate(request.units) for request in requests]
        {make_gates}
        return gates

    def loss(self, units, ratio, target, progress):
        {loss}
        return torch.zeros_like(ratio)
"""
MISTAKES = {
    "make_gates": (
        "make_gates", "raise KeyError('oops')",
        "method 'mine:Bad' failed in make_gates: KeyError: 'oops'",
    ),
    "too few gates": (
        "make_gates", "gates.pop()",
        "method 'mine:Bad' made 5 gates for 6 requests; make_gates must return one a request",
    ),
    "forward": (
        "forward", "raise ValueError('two\\nlines')",
        "method 'mine:Bad' failed in the forward of a gate: ValueError: two",
    ),
    "width": (
        "forward", "units = 5",
        "a gate of method 'mine:Bad' gives 5 values for 16 units; values, probability and openness",
    ),
    "loss": ("loss", "raise KeyError(1)", "method 'mine:Bad' failed in loss: KeyError: 1"),
    "loss, no words": ("loss", "assert False", "method 'mine:Bad' failed in loss: AssertionError"),
    "out of memory": ("loss", "raise torch.OutOfMemoryError('full')", "full"),
}  # fmt: skip


def _one_step() -> None:
    """Of a network that is gated by mine:Bad, which searches from the first step on."""
    images = torch.zeros(2, 3, 8, 8)
    gated = attach_gates(CifarResNet(1, 10), images, method="mine:Bad")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    phases = Phases(search=0.0, settle=0.5)
    one = OnePass(gated, optimizer, target=0.5, total_steps=10, phases=phases)
    (one.network(images).sum() + one.loss()).backward()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes mine.py with this mistake in this place."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(place: str, mistake: str) -> None:
        parts = dict.fromkeys(("make_gates", "forward", "loss"), "pass") | {place: mistake}
        (tmp_path / "mine.py").write_text(MINE.format(**parts))

    return write


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_method_of_somebody_elses_is_one_line_that_names_it(
    case: str, mine: Callable[[str, str], None]
) -> None:
    place, mistake, message = MISTAKES[case]
    mine(place, mistake)
    with pytest.raises(Exception, match=f"^{re.escape(message)}") as raised:
        _one_step()
    assert "\n" not in str(raised.value)
    foreign = mistake.startswith(("raise", "assert")) and case != "out of memory"
    assert isinstance(raised.value, PolarpruneError) == (case != "out of memory")
    assert (raised.value.__cause__ is not None) == foreign


def test_a_method_is_called_what_the_command_line_calls_it() -> None:
    assert [called(build_method(name)) for name in OWN] == OWN


def test_an_option_that_is_not_given_is_no_option() -> None:
    assert isinstance(build_method("consensus", {"ejector": None}), Consensus)


def test_the_protocol_itself_is_no_method() -> None:
    with pytest.raises(ConfigError, match="--method must be one of"):
        build_method("protocol")
