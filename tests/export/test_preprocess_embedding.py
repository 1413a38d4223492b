"""Pixels in: the graph normalises as training does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import fx, nn

from polarprune.errors import Refused
from polarprune.manifest import Preprocessing
from polarprune_export.onnx_session import open_session
from polarprune_export.onnx_writer import write_onnx
from polarprune_export.parity_samples import normalise_pixels, restore_pixels
from polarprune_export.preprocess_embedding import embed_preprocessing

STEPS = Preprocessing(16, 16, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_pixels_give_what_normalised_images_give(plain: fx.GraphModule, tmp_path: Path) -> None:
    write_onnx(plain, tmp_path / "m.onnx", torch.randn(2, 3, 16, 16))
    model = onnx.load(str(tmp_path / "m.onnx"))
    before = open_session(model.SerializeToString())
    embed_preprocessing(model, STEPS)
    onnx.checker.check_model(model, full_check=True)
    after = open_session(model.SerializeToString())
    assert after.get_inputs()[0].type == "tensor(uint8)"
    assert after.get_inputs()[0].shape == ["batch", 16, 16, 3]
    pixels = _pixels()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (STEPS.mean, STEPS.std))
    wanted = before.run(None, {"input": ((images - mean) / std).numpy()})[0]
    got = after.run(None, {"input": pixels})[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_pixels_come_back_out_of_normalised_images() -> None:
    pixels = _pixels()
    np.testing.assert_array_equal(restore_pixels(normalise_pixels(pixels, STEPS), STEPS), pixels)


def test_images_of_one_channel_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    write_onnx(net, tmp_path / "m.onnx", torch.randn(2, 1, 8, 8))
    with pytest.raises(Refused, match="images of 3 channels, the network reads 1"):
        embed_preprocessing(onnx.load(str(tmp_path / "m.onnx")), STEPS)
