"""The ONNX file: one file, free batch, canonical, and the same network."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from polarprune.errors import BackendUnavailable, Refused
from polarprune_export import check_parity, lint_onnx, write_onnx
from polarprune_export.onnx_writer import OnnxReport

# Float32 against float64 through five layers; a wrong layer shows at 1e-2.
FLOAT32_TOLERANCE = 1e-5


@pytest.fixture
def written(onnx_report: OnnxReport) -> Path:
    return onnx_report.path


def test_there_is_one_file_and_the_weights_are_in_it(written: Path) -> None:
    assert [path.name for path in written.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(written, load_external_data=False)
    assert all(t.data_location != t.EXTERNAL for t in model.graph.initializer)


def test_the_batch_stays_free_though_the_example_has_one_image(written: Path) -> None:
    graph = onnx.load(written).graph
    for value, name in ((graph.input[0], "input"), (graph.output[0], "logits")):
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:]] == [3, 32, 32]


def test_an_independent_interpreter_computes_the_same(written: Path, plain: fx.GraphModule) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    (got,) = ReferenceEvaluator(onnx.load(written)).run(None, {"input": images.numpy()})
    with torch.no_grad():
        expected = plain.double()(images.double()).numpy()
    plain.float()
    assert np.abs(got - expected).max() <= FLOAT32_TOLERANCE * np.abs(expected).max()


def test_the_file_says_nothing_of_the_machine_and_passes_the_lint(written: Path) -> None:
    content = written.read_bytes()
    for trace in (b"/home", b".py", b"site-packages", b"stack_trace", b"onnxsim"):
        assert trace not in content
    assert {node.op_type for node in onnx.load(written).graph.node}.isdisjoint(
        {"BatchNormalization", "Identity", "Mul"}
    )
    lint_onnx(written)


REBUILD = """
import hashlib, pathlib, sys, torch
from polarprune_export import write_onnx
from torch import fx, nn
torch.manual_seed(5)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                    nn.Flatten(), nn.Linear(4, 2))
net = fx.symbolic_trace(net)
for i in range(int(sys.argv[2])):
    write_onnx(net, sys.argv[1], torch.zeros(1, 3, 8, 8))
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_that_exported_more_before_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", REBUILD, str(tmp_path / "fresh.onnx"), "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "here.onnx"), "2"])
    exec(REBUILD, {})
    assert answer.stdout.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_a_fixed_batch_is_fixed_when_asked_for(
    plain: fx.GraphModule, example: Tensor, tmp_path: Path
) -> None:
    report = write_onnx(plain, tmp_path / "fixed.onnx", example, dynamic_batch=False)
    assert report.inputs[0].shape == (1, 3, 32, 32)
    check_parity(plain, report.path, real_images=None)


class ConstantBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 64).mean(2)


def test_a_network_that_fixes_its_batch_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        write_onnx(fx.symbolic_trace(ConstantBatch()), tmp_path / "m.onnx", torch.zeros(2, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class TwoHeads(nn.Module):
    def __init__(self, as_dict: bool = True) -> None:
        super().__init__()
        self.as_dict = as_dict
        self.body, self.left, self.right = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(4, 5, 1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        y = self.body(x)
        left, right = self.left(y), self.right(y)
        return {"left": left, "right": right} if self.as_dict else (left, right)


@pytest.mark.parametrize(
    ("as_dict", "names"), [(True, ["left", "right"]), (False, ["output_0", "output_1"])]
)
def test_several_outputs_are_named_and_all_compared(
    tmp_path: Path, as_dict: bool, names: list[str]
) -> None:
    net = fx.symbolic_trace(TwoHeads(as_dict))
    report = write_onnx(net, tmp_path / "two.onnx", torch.zeros(1, 3, 8, 8))
    assert [spec.name for spec in report.outputs] == names
    result = check_parity(net, report.path, real_images=None)
    assert [output.shape[1] for output in result.random[1]] == [2, 5]


def test_channels_last_weights_and_half_precision_networks_are_written_as_float32(
    plain: fx.GraphModule, example: Tensor, tmp_path: Path
) -> None:
    expected = write_onnx(plain, tmp_path / "a.onnx", example).path.read_bytes()
    plain.to(memory_format=torch.channels_last)
    try:
        got = write_onnx(plain, tmp_path / "b.onnx", example).path.read_bytes()
    finally:
        plain.to(memory_format=torch.contiguous_format)
    assert got == expected


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pool = nn.Linear(3, 4), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.flatten(self.pool(x) + x.mean((2, 3), keepdim=True), 1)


def test_pooling_behind_a_permutation_is_no_gather(tmp_path: Path) -> None:
    net = fx.symbolic_trace(Permuted())
    report = write_onnx(net, tmp_path / "m.onnx", torch.zeros(2, 3, 8, 8))
    lint_onnx(report.path)
    check_parity(net, report.path, real_images=None)


def test_without_onnxruntime_the_file_is_written_but_not_simplified(
    plain: fx.GraphModule, example: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert write_onnx(plain, tmp_path / "m.onnx", example).simplified is False
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[cpu\]'"):
        check_parity(plain, tmp_path / "m.onnx", real_images=None)


@pytest.mark.study
def test_torchvision_mobilenet_is_the_same_in_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = fx.symbolic_trace(torchvision.models.mobilenet_v2(weights=None).eval())
    report = write_onnx(net, tmp_path / "m.onnx", torch.zeros(1, 3, 64, 64))
    assert report.operators["Conv"] == 52
    assert "BatchNormalization" not in report.operators
    lint_onnx(report.path)
    check_parity(net, report.path, real_images=None)
