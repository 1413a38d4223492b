"""Networks in which a lower precision, or the exporter, goes wrong in a corner of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polarprune.datasets import Dataset, load_dataset
from polarprune.errors import ConfigError, ParityError, PolarpruneError, Refused
from polarprune.manifest import Manifest, Preprocessing
from polarprune_export import verify_bundle, write_bundle
from polarprune_export.bundle import ONNX_NAME, BundleContents
from polarprune_export.half_emulation import emulate_half
from polarprune_export.onnx_session import Array, open_session
from polarprune_export.parity_samples import SAMPLES_NAME, unpack_samples

SIDE = 8


class Computed(nn.Module):
    """A convolution, something, and a classifier."""

    def __init__(self, something: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.something(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=SIDE)


def _write(
    net: nn.Module, folder: Path, precision: str, data: Dataset | None = None, **more: object
) -> Manifest:
    steps = None
    if data is not None:
        steps = Preprocessing(SIDE, SIDE, SIDE, tuple(data.mean), tuple(data.std))
    given = {"preprocessing": steps, "data": data, "precision": precision, **more}
    contents = BundleContents("net", **given)  # type: ignore[arg-type]
    return write_bundle(net.eval(), folder, torch.randn(2, 3, SIDE, SIDE), contents)


def _run(folder: Path, images: Array) -> Array:
    model = emulate_half(onnx.load(str(folder / ONNX_NAME)))
    output: Array = open_session(model.SerializeToString()).run(None, {"input": images})[0]
    return output


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_epsilon_and_what_divides_by_it_stay(tmp_path: Path, precision: str) -> None:
    # Without a bias a black image is divided by its epsilon.
    net = Computed(lambda y: F.normalize(y, dim=1))
    net.conv.bias = None
    manifest = _write(net, tmp_path / "b", precision)
    black = _run(tmp_path / "b", np.zeros((2, 3, SIDE, SIDE), np.float32))
    assert np.isfinite(black).all()
    if precision == "fp16":
        assert any(name.startswith("div") for name in manifest.kept_float32)
    assert not any(name.startswith(("conv", "gemm")) for name in manifest.kept_float32)
    assert verify_bundle(tmp_path / "b")["passed"]


def test_an_epsilon_that_the_exporter_drops_is_caught(tmp_path: Path) -> None:
    def normalised(y: Tensor) -> Tensor:
        mean = y.mean((2, 3), keepdim=True)
        spread = ((y - mean) ** 2).mean((2, 3), keepdim=True)
        return (y - mean) / torch.sqrt(spread + 1e-8)

    net = Computed(normalised)
    net.conv.bias = None
    with pytest.raises(ParityError, match="differ"):
        _write(net, tmp_path / "b", "fp32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "something",
    [
        lambda y: F.group_norm(y, 4),
        lambda y: y + y.new_zeros(y.shape[0], 8, 1, 1),
        lambda y: F.interpolate(y, size=(y.shape[2] * 2, y.shape[3] * 2), mode="bilinear"),
    ],
    ids=["group norm", "zeros of the batch's size", "resize"],
)
def test_operators_without_a_rule_are_no_obstacle(
    tmp_path: Path, precision: str, something: Callable[[Tensor], Tensor]
) -> None:
    manifest = _write(Computed(something), tmp_path / "b", precision)
    assert verify_bundle(tmp_path / "b")["passed"]
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "b" / ONNX_NAME)))
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    nodes = {node.name: node for node in model.graph.node}
    for name in manifest.kept_float32:
        values = (*nodes[name].input, *nodes[name].output)
        assert onnx.TensorProto.FLOAT in {kinds.get(value) for value in values}, name


def test_transposed_convolutions_stay_out_of_bf16_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 8, 2, stride=2)
    kept = {}
    for precision in ("fp16", "bf16"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), up, nn.Flatten(), nn.Linear(8 * 144, 10))
        kept[precision] = _write(net, tmp_path / precision, precision).kept_float32
    assert kept == {"fp16": (), "bf16": ("conv_transpose_0",)}


def test_pixels_of_0_to_255_need_no_product(tmp_path: Path, digits: Dataset) -> None:
    steps = Preprocessing(SIDE, SIDE, SIDE, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    net = Computed(torch.relu)
    net.conv.weight.data /= 255
    _write(net, tmp_path / "b", "fp32", digits, preprocessing=steps, embed_preprocess=True)
    assert verify_bundle(tmp_path / "b")["passed"]


def test_a_parameter_may_have_any_name(tmp_path: Path, digits: Dataset) -> None:
    class Named(Computed):
        def __init__(self) -> None:
            super().__init__(torch.sigmoid)
            self.pixel_scale = nn.Parameter(torch.rand(1, 8, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((torch.sigmoid(self.conv(x)) * self.pixel_scale).mean((2, 3)))

    _write(Named(), tmp_path / "b", "fp32", digits, embed_preprocess=True)
    assert verify_bundle(tmp_path / "b")["passed"]


class Shifted(nn.Module):
    """An addition that no int8 holds: one channel far from the others, and taken back at once."""

    def __init__(self, far: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)
        self.far = nn.Parameter(torch.zeros(1, 16, 1, 1))
        self.far.data[:, 0] = far

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x)) + self.far
        return self.head(torch.tanh(self.two(y - self.far)).mean((2, 3)))


@pytest.mark.parametrize("far", [30.0, 300.0])
def test_an_addition_can_be_left_in_float32(tmp_path: Path, digits: Dataset, far: float) -> None:
    manifest = _write(Shifted(far), tmp_path / "b", "int8", digits)
    assert any(name.startswith("add") for name in manifest.kept_float32)
    model = onnx.load(str(tmp_path / "b" / ONNX_NAME))
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    first, second = (n for n in model.graph.node if n.op_type == "Conv")
    assert "DequantizeLinear" in (made[first.input[1]], made[second.input[1]])


def test_the_output_that_is_scored_decides(tmp_path: Path, digits: Dataset) -> None:
    class Two(Computed):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            y = torch.relu(self.conv(x))
            return {"features": y, "out": self.head(y.mean((2, 3)))}

    manifest = _write(Two(torch.relu), tmp_path / "b", "int8", digits)
    scores = Computed(torch.relu).eval()
    pixels, _ = digits.test.raw(256)
    link = manifest.certificate[-1]
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        wanted = scores(images).argmax(1).numpy()
    session = open_session((tmp_path / "b" / ONNX_NAME).read_bytes())
    got = session.run(["out"], {"input": images.numpy()})[0].argmax(1)
    assert link.top1_agreement == pytest.approx(float((got == wanted).mean()), abs=0.01)
    samples = unpack_samples((tmp_path / "b" / SAMPLES_NAME).read_bytes(), manifest)
    for check in verify_bundle(tmp_path / "b")["parity"]:
        inputs, (_, reference) = samples[check["inputs"]]
        [scored] = session.run(["out"], {"input": inputs})
        same = (scored.argmax(1) == reference.argmax(1)).mean()
        assert check["top1_agreement"] == pytest.approx(float(same))


def test_a_refusal_names_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    class Through(Computed):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"out": super().forward(x), "image": x}

    with pytest.raises(PolarpruneError) as caught:
        write_bundle(
            Through(torch.relu), tmp_path / "b", torch.randn(2, 3, SIDE, SIDE),
            BundleContents("net"),
        )  # fmt: skip
    assert str(tmp_path / "b" / ONNX_NAME) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_fp16_of_nothing_is_refused(tmp_path: Path) -> None:
    net = Computed(torch.relu)
    with torch.no_grad():
        net.conv.weight *= 1e7
        net.head.weight *= 1e6
    with pytest.raises(Refused, match="no weights can be fp16: all layers have values above"):
        _write(net, tmp_path / "b", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_depth_are_refused(tmp_path: Path, digits: Dataset) -> None:
    net = Computed(torch.relu, channels=1).eval()
    steps = Preprocessing(SIDE, SIDE, SIDE, tuple(digits.mean), tuple(digits.std))
    contents = BundleContents("net", preprocessing=steps, data=digits)
    with pytest.raises(ConfigError, match="images of 3 channels, the network takes 1"):
        write_bundle(net, tmp_path / "b", torch.randn(2, 1, SIDE, SIDE), contents)


@pytest.mark.parametrize("batch", [(1, 8, 10**11), (2000, 2000, 2000)])
def test_a_batch_that_nobody_can_mean_is_refused(
    tmp_path: Path, batch: tuple[int, int, int]
) -> None:
    with pytest.raises(ConfigError, match="--batch may be up to"):
        write_bundle(
            Computed(torch.relu), tmp_path / "b", torch.randn(2, 3, SIDE, SIDE),
            BundleContents("net"), batch=batch,
        )  # fmt: skip
