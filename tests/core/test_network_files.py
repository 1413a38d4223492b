"""network.json and weights.safetensors: whole networks come back, hostile files do not run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_networks import all_open, image, small
from torch import Tensor, nn

import polarprune
from polarprune.collapsing import describe
from polarprune.errors import CheckpointError, PolarpruneError, Refused


def _compute(s, x: Tensor) -> Tensor:
    x = F.relu(s.stem(x)) * s.constant
    x = x + s.scale * s.two(s.relu(s.norm(s.one(x))))
    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
    return s.out(s.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def _dense() -> nn.Module:
    torch.manual_seed(0)
    gated = polarprune.attach_gates(
        small(_compute, out=nn.Linear(10, 4), drop=nn.Dropout(0.25)).eval(), image()
    )
    gated.set_decisions(all_open(gated, one=[0, 1]))
    return polarprune.collapse(gated)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    polarprune.save_network(_dense(), tmp_path / "net")
    return tmp_path / "net"


def test_a_network_comes_back_bit_by_bit(saved: Path) -> None:
    dense, loaded = _dense().eval(), polarprune.load_network(saved)
    assert torch.equal(dense(image()), loaded(image()))
    assert dict(loaded.named_parameters()).keys() == dict(dense.named_parameters()).keys()
    assert dict(loaded.named_buffers()).keys() == dict(dense.named_buffers()).keys()
    assert describe(loaded) == describe(dense)
    assert not loaded.training


def test_a_loaded_network_can_be_collapsed_saved_and_gated_again(saved: Path) -> None:
    loaded = polarprune.load_network(saved)
    polarprune.save_network(polarprune.collapse(loaded), saved.with_name("again"))
    for name in ("network.json", "weights.safetensors"):
        assert (saved / name).read_bytes() == (saved.with_name("again") / name).read_bytes()
    assert polarprune.attach_gates(loaded, image()).sites


def test_saving_leaves_two_files_and_replaces_old_ones(saved: Path) -> None:
    polarprune.save_network(_dense(), saved)
    assert sorted(p.name for p in saved.iterdir()) == ["network.json", "weights.safetensors"]


def test_numbers_that_json_lacks_and_sizes_that_are_computed_come_back(tmp_path: Path) -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(s.stem(x), (1, 1, 1, 1), "constant", -math.inf), 3, 2)
        x = F.interpolate(x, size=(math.ceil(x.shape[2] / 3) * 2, 5))
        return s.head(x @ torch.eye(x.shape[3], dtype=x.dtype, device=x.device))

    dense = polarprune.collapse(polarprune.attach_gates(small(compute).eval(), image()))
    polarprune.save_network(dense, tmp_path / "net")
    assert torch.equal(polarprune.load_network(tmp_path / "net")(image()), dense(image()))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; a network is saved into a folder"):
        polarprune.save_network(_dense(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_not_collapsed_is_refused_before_a_file_is_touched(tmp_path: Path) -> None:
    def unknown(s, x: Tensor) -> Tensor:
        return s.head(s.stem(x).erf())

    for net, match in (
        (nn.Linear(2, 2), "only collapsed networks"),
        (polarprune.collapse(polarprune.attach_gates(small(unknown), image())), "method erf"),
    ):
        with pytest.raises(Refused, match=match):
            polarprune.save_network(net, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def _node(document: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in document["nodes"] if node["op"] == op)


def _set(place: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any):
    def edit(document: dict[str, Any]) -> None:
        place(document)[key] = value

    return edit


HOSTILE = {
    "function os.system": _set(lambda d: _node(d, "call_function"), "target", "os.system"),
    "function eval": _set(lambda d: _node(d, "call_function"), "target", "eval"),
    "method __reduce__": _set(lambda d: _node(d, "call_method"), "target", "__reduce__"),
    "code as layer path": _set(
        lambda d: _node(d, "call_module"), "target", 'a"), exec("raise SystemExit(7)'
    ),
    "code as node name": _set(lambda d: _node(d, "call_module"), "name", "x = exec('1')"),
    "code as input name": _set(
        lambda d: _node(d, "placeholder"), "target", "x=__import__('os').abort()"
    ),
    "keyword as input name": _set(lambda d: _node(d, "placeholder"), "target", "import"),
    "dotted argument name": _set(lambda d: _node(d, "call_function"), "kwargs", {"a.b": 1}),
    "keyword as argument name": _set(lambda d: _node(d, "call_function"), "kwargs", {"class": 1}),
    "arguments as list": _set(lambda d: _node(d, "call_function"), "kwargs", ["a"]),
    "layer type Module": _set(lambda d: d["layers"]["stem"], "type", "os.system"),
    "layer arguments as list": _set(lambda d: d["layers"]["stem"], "arguments", [3, 8]),
    "layer argument that does not exist": _set(
        lambda d: d["layers"]["stem"]["arguments"], "device", "nowhere"
    ),
    "layer of absurd size": _set(
        lambda d: d["layers"]["stem"]["arguments"], "out_channels", 10**15
    ),
    "layer of other size": _set(lambda d: d["layers"]["stem"]["arguments"], "out_channels", 9),
    "layer of no groups": _set(lambda d: d["layers"]["stem"]["arguments"], "groups", 0),
    "unknown node kind": _set(lambda d: d["nodes"][0], "op", "exec"),
    "missing layer": lambda d: d["layers"].pop("stem"),
    "missing nodes": lambda d: d.pop("nodes"),
    "missing base": lambda d: d.pop("base"),
    "unknown node read": _set(lambda d: _node(d, "call_module"), "args", [{"node": "nowhere"}]),
    "two-headed value": _set(
        lambda d: _node(d, "call_module"), "args", [{"node": "x", "tuple": []}]
    ),
    "value of unknown kind": _set(lambda d: _node(d, "call_module"), "args", [{"eval": "1"}]),
    "nodes as number": _set(lambda d: d, "nodes", 7),
    "layers as list": _set(lambda d: d, "layers", []),
    "schema of tomorrow": _set(lambda d: d, "schema", 99),
    "schema as list": _set(lambda d: d, "schema", [1]),
    "no input shape": _set(lambda d: d["base"], "input_shape", None),
    "attribute without weight": _set(lambda d: _node(d, "get_attr"), "target", "forward"),
    "attribute of object": _set(lambda d: _node(d, "get_attr"), "target", "__class__"),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_in_one_line(saved: Path, edit) -> None:
    path = saved / "network.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(PolarpruneError) as caught:
        polarprune.load_network(saved)
    assert "\n" not in str(caught.value)
    assert str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}'],
    ids=["empty", "list", "null", "half", "no text", "deep", "only schema"],
)  # fmt: skip
def test_a_broken_description_is_refused_in_one_line(saved: Path, content: bytes) -> None:
    (saved / "network.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        polarprune.load_network(saved)
    assert "\n" not in str(caught.value)


def _reshape(weights: dict[str, Tensor]) -> None:
    weights["out.weight"] = weights["out.weight"][:, :-1].contiguous()


WEIGHTS = {
    "wrong shape": (_reshape, "out.weight"),
    "missing": (lambda w: w.pop("one.bias"), "one.bias"),
    "unexpected": (lambda w: w.update(extra=torch.ones(1)), "extra"),
}


@pytest.mark.parametrize(("edit", "name"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_name_the_tensor(saved: Path, edit, name: str) -> None:
    weights = load_file(saved / "weights.safetensors")
    edit(weights)
    save_file(weights, saved / "weights.safetensors")
    with pytest.raises(CheckpointError, match=name) as caught:
        polarprune.load_network(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["network.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "folder"])
def test_damaged_files_are_refused_in_one_line(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError) as caught:
        polarprune.load_network(saved)
    assert "\n" not in str(caught.value)


def test_weights_shared_by_two_layers_are_refused(tmp_path: Path) -> None:
    net = small(lambda s, x: s.head(s.two(F.relu(s.one(s.stem(x))))))
    net.two.weight = net.one.weight
    dense = polarprune.collapse(polarprune.attach_gates(net, image()))
    with pytest.raises(Refused, match="are one tensor"):
        polarprune.save_network(dense, tmp_path / "net")
    assert not (tmp_path / "net").exists()
