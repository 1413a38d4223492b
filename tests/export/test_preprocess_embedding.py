"""Pixels in: the graph normalises as training does."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps
from torch import fx, nn

from polarprune.datasets import load_dataset
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


def _as_a_server_reads(path: Path, steps: Preprocessing) -> np.ndarray:
    """What the manifest says, with Pillow alone."""
    image = Image.open(path)
    image = (ImageOps.exif_transpose(image) if steps.exif_transpose else image).convert("RGB")
    shorter, longer = sorted(image.size)
    other = int(steps.resize_side * longer / shorter)
    size = (steps.resize_side, other) if image.width <= image.height else (other, steps.resize_side)
    image = image.resize(size, getattr(Image.Resampling, steps.interpolation.upper()))
    left, top = (round((image.width - steps.width) / 2), round((image.height - steps.height) / 2))
    return np.asarray(image.crop((left, top, left + steps.width, top + steps.height)))


def test_the_manifest_says_enough_to_read_images_as_training_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 12)):
        for kind in ("a", "b"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                h, w = rng.integers(20, 90, 2)
                image = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
                turned = image.getexif()
                turned[0x0112] = int(rng.integers(1, 9))
                image.save(folder / f"{number:02}.png", exif=turned)
    data = load_dataset(str(tmp_path), image_size=24)
    assert data.resize_side > 24, "nothing is cropped"
    steps = Preprocessing(24, 24, data.resize_side, data.mean, data.std)
    files = sorted((tmp_path / "test").rglob("*.png"))
    pixels, _ = data.test.raw(len(files))
    for path, wanted in zip(files, pixels.numpy(), strict=True):
        np.testing.assert_array_equal(_as_a_server_reads(path, steps), wanted, err_msg=path.name)
    images, _ = next(iter(data.test.batches(len(files), shuffle_seed=None, augment=False)))
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (steps.mean, steps.std))
    made = [_as_a_server_reads(path, steps).transpose(2, 0, 1) * steps.scale for path in files]
    np.testing.assert_allclose((np.stack(made) - mean) / std, images.numpy(), atol=1e-5)
    assert math.isclose(steps.scale * 255, 1)
