"""How a method is found: its own file, somebody else's class, or a name that nobody knows."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from digit_runs import config

from polarprune import methods, training
from polarprune.errors import ConfigError
from polarprune.methods import build_method, method_names
from polarprune.methods.consensus import Consensus

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
    "nobody knows it": ("wisdom", {}, "method 'wisdom' is unknown; choose one of: consensus"),
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


def test_an_option_that_is_not_given_is_no_option() -> None:
    assert isinstance(build_method("consensus", {"ejector": None}), Consensus)


def test_the_protocol_itself_is_no_method() -> None:
    with pytest.raises(ConfigError, match="method 'protocol' is unknown"):
        build_method("protocol")
