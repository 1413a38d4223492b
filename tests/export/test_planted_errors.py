"""An error planted in each link of the certificate chain, and which link catches it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import polarprune
from polarprune.errors import BundleError, ParityError
from polarprune_export import bundle as bundles
from polarprune_export import shipped_model as shipping
from polarprune_export import verify_bundle, write_bundle
from polarprune_export.bundle import ONNX_NAME, BundleContents
from polarprune_export.onnx_writer import OnnxReport, write_onnx

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _swap_filters(net: nn.Module) -> None:
    weight = net.get_parameter("one.weight").data
    weight[[0, 1]] = weight[[1, 0]].clone()


def _shift_statistic(net: nn.Module) -> None:
    net.get_buffer("one_bn.running_mean")[2] += 0.01


def _change_weight(net: nn.Module) -> None:
    net.get_parameter("two.weight").data[0, 0, 1, 1] += 1e-3


PLANTED: dict[str, Callable[[nn.Module], None]] = {
    "a weight": _change_weight,
    "the order of channels": _swap_filters,
    "a statistic": _shift_statistic,
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_certificate_of_a_cut_catches(what: str, plain: fx.GraphModule) -> None:
    gated = polarprune.attach_gates(copy.deepcopy(plain), EXAMPLE)
    gated.set_decisions({s.name: torch.arange(s.units) != 3 for s in gated.sites})
    small = polarprune.collapse(gated)
    assert polarprune.certify(gated, small, EXAMPLE).passed
    PLANTED[what](small)
    with pytest.raises(ParityError, match="the collapsed network differs from the gated one"):
        polarprune.certify(gated, small, EXAMPLE)


def _spoil(model: onnx.ModelProto, what: str) -> None:
    """The same in the exported graph, where a norm is part of its convolution."""
    names = {"a weight": "two.weight", "the order of channels": "one.weight"}
    wanted = names.get(what, "one.bias")
    [tensor] = [t for t in model.graph.initializer if t.name.startswith(wanted)]
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    if what == "the order of channels":
        values = values[::-1].copy()
    else:
        values.flat[2] += 0.01
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(dtype), tensor.name))


@pytest.mark.parametrize("what", PLANTED)
def test_the_onnx_link_catches(
    what: str, plain: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(net: nn.Module, path: Path, example: Tensor, **options: int) -> OnnxReport:
        report = write_onnx(net, path, example, **options)  # type: ignore[arg-type]
        model = onnx.load(str(path))
        _spoil(model, what)
        onnx.save(model, path)
        return report

    monkeypatch.setattr(bundles, "write_onnx", spoiled)
    with pytest.raises(ParityError, match=r"onnxruntime \(float32\) and torch \(float64\) differ"):
        write_bundle(plain, tmp_path / "b", EXAMPLE, BundleContents("net"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_link_of_the_precision_catches(
    precision: str, plain: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shipping.lower_precision

    def spoiled(model: onnx.ModelProto, *rest: object) -> object:
        lowered = whole(model, *rest)  # type: ignore[arg-type]
        _spoil(lowered.model, "the order of channels")
        return lowered

    monkeypatch.setattr(shipping, "lower_precision", spoiled)
    with pytest.raises(ParityError, match=r"emulated\) and torch \(float64\) differ"):
        write_bundle(plain, tmp_path / "b", EXAMPLE, BundleContents("net", precision=precision))
    assert not list(tmp_path.iterdir())


def test_an_edit_of_the_file_is_caught_by_its_digest_and_one_of_both_by_parity(
    plain: fx.GraphModule, tmp_path: Path
) -> None:
    write_bundle(plain, tmp_path / "b", EXAMPLE, BundleContents("net"))
    file = tmp_path / "b" / ONNX_NAME
    model = onnx.load(str(file))
    _spoil(model, "a weight")
    onnx.save(model, file)
    with pytest.raises(BundleError, match="changed after export"):
        verify_bundle(tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    document = json.loads(manifest.read_text())
    from polarprune.manifest import FileEntry

    entry = FileEntry.of(file.read_bytes())
    document["files"][ONNX_NAME] = {"sha256": entry.sha256, "size": entry.size}
    manifest.write_text(json.dumps(document))
    with pytest.raises(ParityError, match="do not serve this bundle"):
        verify_bundle(tmp_path / "b")
