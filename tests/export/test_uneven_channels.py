"""What is said to be slow in ONNX Runtime is what its own optimised graph leaves unblocked."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from polarprune_export import write_onnx
from polarprune_export.uneven_channels import uneven_layers, uneven_words


def _chain(*channels: int, groups: tuple[int, ...] = ()) -> nn.Sequential:
    groups = groups or (1,) * (len(channels) - 1)
    layers: list[nn.Module] = []
    for inputs, outputs, each in zip(channels[:-1], channels[1:], groups, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, groups=each), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def _unblocked(path: Path, folder: Path) -> int:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    convolutions = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    return sum(node.domain != "com.microsoft.nchwc" for node in convolutions)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="blocks of channels are x86's")
@pytest.mark.parametrize(
    ("net", "uneven"),
    [
        (_chain(3, 32, 64, 32), 0),
        (_chain(3, 20, 36, 24), 0),  # multiples of 4 alone
        (_chain(3, 21, 22, 23, 32), 3),  # their readers, not the image's
        (_chain(3, 24, 24, 32, groups=(1, 24, 1)), 0),
        (_chain(3, 26, 26, 32, groups=(1, 26, 1)), 2),  # depthwise, and its reader
    ],
)
def test_it_counts_what_the_runtime_leaves_out(net: nn.Module, uneven: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(net, path, torch.zeros(1, 3, 16, 16))
    assert len(uneven_layers(path)) == uneven == _unblocked(path, tmp_path)


def test_layers_without_channels_of_images_are_none(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 9)).eval()
    write_onnx(net, tmp_path / "net.onnx", torch.zeros(1, 3, 3, 3))
    assert uneven_layers(tmp_path / "net.onnx") == []


NETWORK = """
from torch import nn

def make(channels):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )

def uneven(): return make(21)
def even(): return make(20)
"""


@pytest.fixture
def networks_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_nets_of_mine.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("networks_of_mine")
@pytest.mark.parametrize(("name", "count"), [("uneven", 1), ("even", 0)])
def test_export_says_how_many(
    name: str,
    count: int,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    source = ["export", f"small_nets_of_mine:{name}", "--image-size", "8", "--num-classes", "4"]
    code, out, err = run(*source, "--batch", "2", "--out", name)
    printed = " ".join(out.split())
    assert code == 0, err
    told = "1 convolution reads or has channel counts that are no multiple of 4 (2)"
    assert (told in printed) == bool(count)
    assert ("The network itself has this count." in printed) == bool(count)
    assert "input 3 x 8 x 8" in printed
    onnx_file = tmp_path / name / "model.onnx"
    assert len(uneven_layers(onnx_file)) == count
    if count:
        for base, words in {
            "even": "`train --align 4` avoids it.",
            "uneven": "has this count.",
        }.items():
            document = {"config": {"model": f"small_nets_of_mine:{base}"}, "classes": [*"abcd"]}
            document |= {"schema": 1, "mean": [0] * 3, "std": [1] * 3, "resize_side": 8}
            (tmp_path / "run.json").write_text(json.dumps({**document, "input_shape": [3, 8, 8]}))
            assert uneven_words(onnx_file, tmp_path).endswith(words)
        (tmp_path / "network.json").touch()  # a saved network: what it was cut from is not known
        assert uneven_words(onnx_file, tmp_path).endswith("on a CPU.")


@pytest.mark.usefixtures("networks_of_mine")
@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_a_class_count_that_a_factory_cannot_heed_is_refused(
    verb: str,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    options = ["--out", "b"] if verb == "export" else []
    source = [verb, "small_nets_of_mine:even", "--image-size", "8", "--num-classes", "7"]
    code, _, err = run(*source, *options)
    assert code == 1
    assert "--num-classes is 7, but small_nets_of_mine:even has 4 whatever is asked for" in err
    assert not (tmp_path / "b").exists()
