"""Layer times of real profiles: every layer is found, and the parts fit into the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import polarprune
from polarprune.errors import BackendUnavailable, ConfigError
from polarprune_deploy.backends.network_bytes import read_network
from polarprune_deploy.layers.layer_times_onnxruntime import (
    ProfiledRunner,
    kernels_of,
    layer_of,
    measure_node_cost,
    read_profile,
)
from polarprune_deploy.layers.layer_times_torch import time_networks
from polarprune_deploy.layers.layers_onnx import OnnxLayers, read_layers
from polarprune_export import write_onnx


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "resnet20.onnx"
    net = polarprune.build_network("resnet20", num_classes=10).eval()
    write_onnx(net, path, torch.zeros(2, 3, 32, 32))
    return path


def test_macs_are_the_librarys_own_count(resnet20: Path) -> None:
    net = polarprune.build_network("resnet20", num_classes=10).eval()
    layers = read_layers(onnx.load(resnet20), 4).layers
    expected = polarprune.count_macs(net, torch.zeros(1, 3, 32, 32))
    assert sum(layer.macs for layer in layers) == 4 * expected
    names = {name for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in layers} == names


def test_every_layer_of_a_profile_is_found_and_fits_into_its_run(resnet20: Path) -> None:
    network = read_network(resnet20)
    layers = read_layers(onnx.load_from_string(network.data), 4)
    profiler = ProfiledRunner(network, threads=1)
    images = np.zeros((4, 3, 32, 32), np.float32)
    for _ in range(25):
        profiler.run({"input": images})
    folder = Path(profiler._folder.name)
    runs = read_profile(profiler.events())
    assert not folder.exists()
    assert len(runs) == 25
    for run in runs:  # stamps are whole microseconds, one run holds some 50
        inside = sum(ms for _, _, ms in run.nodes)
        assert 0 < inside <= run.ms + 0.001 * len(run.nodes)
    # Of the run that was interrupted least: 100 million MACs leave little between the kernels.
    assert max(sum(ms for _, _, ms in run.nodes) / run.ms for run in runs) > 0.8
    kernels = kernels_of(runs, layers, record_ms=0.0)
    assert {k.layer for k in kernels} - {None} == {each.name for each in layers.layers}
    unmapped = {kernel.operator for kernel in kernels if kernel.layer is None}
    assert not unmapped & {"Conv", "FusedConv", "Gemm"}
    assert "Slice" in unmapped  # of the shortcuts: it has no MACs


def test_layers_of_half_precision_are_found_behind_their_casts() -> None:
    layers = OnnxLayers((), {"conv_0": "a"}, {"relu_0_output": "a"})
    assert layer_of("InsertedPrecisionFreeCast_relu_0_output_nchwc", layers) == "a"
    assert layer_of("conv_0", layers) == "a"
    assert layer_of("InsertedPrecisionFreeCast_pad_0_output_nchwc", layers) is None


def test_a_profiler_closed_early_leaves_no_file(resnet20: Path) -> None:
    profiler = ProfiledRunner(read_network(resnet20), threads=1)
    folder = Path(profiler._folder.name)
    profiler.run({"input": np.zeros((1, 3, 32, 32), np.float32)})
    profiler.close()
    profiler.close()
    assert not folder.exists()


def test_a_profile_without_nodes_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no node times"):
        read_profile([{"name": "model_run", "ts": 0, "dur": 5, "cat": "Session"}])


def test_kernel_times_are_medians_less_the_record() -> None:
    layers = OnnxLayers((), {"conv_0": "a"}, {"relu_1_output": "b"})
    runs = read_profile(
        [
            event
            for number, took in enumerate((10, 30, 500))
            for event in (
                {"name": "model_run", "cat": "Session", "ts": 1000 * number, "dur": 900},
                node("conv_0", "FusedConv", 1000 * number, took),
                node("relu_1_output_nchwc", "Conv", 1000 * number + 600, 2 * took),
                node("ReorderOutput_token_7", "ReorderOutput", 1000 * number + 850, 1),
            )
        ]
    )
    kernels = kernels_of(runs, layers, record_ms=0.002)
    assert [(k.layer, k.operator, round(k.ms, 6)) for k in kernels] == [
        ("a", "FusedConv", 0.028),
        ("b", "Conv", 0.058),
        (None, "ReorderOutput", 0.0),
    ]


def node(name: str, operator: str, start: int, took: int) -> dict[str, Any]:
    return {
        "name": f"{name}_kernel_time", "cat": "Node", "ts": start, "dur": took,
        "args": {"op_name": operator},
    }  # fmt: skip


def test_what_a_node_costs_is_a_small_time() -> None:
    cost = measure_node_cost("cpu", 1, runs=30)
    assert 0 <= cost.launch_ms < 1
    assert 0 <= cost.record_ms < 1


def test_torch_layers_and_operators_are_told_apart() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1, groups=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).train()  # fmt: skip
    (times,) = time_networks([net], torch.randn(2, 3, 12, 12), 21).times
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    counts = {layer.name: layer.macs for layer in times.layers}
    assert counts == {"0": 2 * 16 * 100 * 27, "2": 2 * 8 * 100 * 8, "5": 2 * 8 * 4}
    assert all(ms > 0 for ms in times.layer_ms().values())
    assert "aten::clamp_min" in times.other_ms()
    assert not {kernel.operator for kernel in times.kernels if kernel.layer == "0"} & {"aten::relu"}


def test_a_network_without_macs_is_refused() -> None:
    with pytest.raises(ConfigError, match="no convolution or linear layer"):
        time_networks([nn.Sequential(nn.ReLU())], torch.zeros(1, 3, 4, 4), 1)
