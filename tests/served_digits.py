"""A bundle that reads handwritten digits, made in milliseconds, and what it must answer.

The network is linear and fitted in closed form to the real digits that the package holds. What is
expected of a server is worked out from the image alone: slowly, in float64, with ONNX Runtime asked
directly.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import polarprune
from polarprune.manifest import (
    Accuracy,
    BatchProfile,
    CertificateLink,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    write_manifest,
)
from polarprune_export.parity_samples import pack_samples
from polarprune_export.preprocess_embedding import embed_preprocessing
from polarprune_export.probes import Probe

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8
STEPS = Preprocessing(SIDE, SIDE, SIDE, (0.3, 0.31, 0.29), (0.4, 0.38, 0.42))
SHARPNESS = 10.0


def digits(split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 8, 8, 3), uint8, and which digit each shows."""
    assert polarprune.__file__ is not None
    with np.load(Path(polarprune.__file__).parent / "datasets" / "digits.npz") as arrays:
        grey, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    pixels = (grey.astype(np.uint16) * 255 // 16).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=-1), labels.astype(int)


def as_input(pixels: np.ndarray) -> np.ndarray:
    """float64 (n, 3, h, w) of pixels (n, h, w, 3)."""
    scaled = (pixels.astype(np.float64) / 255 - np.array(STEPS.mean)) / np.array(STEPS.std)
    return scaled.transpose(0, 3, 1, 2)


def slow_pixels(image: Image.Image, steps: Preprocessing = STEPS) -> np.ndarray:
    """An RGB image brought to size, float64 (h, w, 3): each new pixel is a mean of old ones.

    Their weights fall linearly to nothing over the distance of two new pixels, or of two old ones
    where that is more.
    """
    shorter = min(image.size)
    width, height = (int(steps.resize_side * side / shorter) for side in image.size)

    def weights(old: int, new: int) -> np.ndarray:
        ratio = old / new
        distance = np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * ratio
        triangle = np.maximum(0, 1 - abs(distance) / max(ratio, 1))
        return triangle / triangle.sum(1, keepdims=True)

    pixels = np.asarray(image, np.float64)
    down = np.tensordot(weights(image.height, height), pixels, axes=(1, 0))  # (new h, old w, 3)
    large = np.tensordot(down, weights(image.width, width), axes=(1, 1)).transpose(0, 2, 1)
    top, left = round((height - steps.height) / 2), round((width - steps.width) / 2)
    return large[top : top + steps.height, left : left + steps.width]


def expected_probabilities(bundle: Path, image: Image.Image) -> np.ndarray:
    """What the bundle of `write_digits` must say to an RGB image; not of an embedded one."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    scores = session.run(None, {"input": as_input(slow_pixels(image)[None]).astype(np.float32)})
    powers = np.exp(scores[0][0].astype(np.float64))
    return powers / powers.sum()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_digits(folder: Path, *, embedded: bool = False, **changes: Any) -> Path:
    """The bundle; `changes` are of the manifest."""
    pixels, labels = digits("train")
    rows = np.column_stack([as_input(pixels).reshape(len(pixels), -1), np.ones(len(pixels))])
    gram = rows.T @ rows + 10.0 * np.eye(rows.shape[1])
    fitted = SHARPNESS * np.linalg.solve(gram, rows.T @ np.eye(10)[labels])
    model = _linear(fitted[:-1].T.astype(np.float32), fitted[-1].astype(np.float32))
    content = model.SerializeToString()
    test, truth = digits()
    session = onnxruntime.InferenceSession(content)
    images = as_input(test).astype(np.float32)
    scores = session.run(None, {"input": images})[0]
    exact = np.column_stack([as_input(test).reshape(len(test), -1), np.ones(len(test))]) @ fitted
    error = float(abs(scores - exact).max())
    link = CertificateLink(
        *("onnxruntime (float32)", "numpy (float64)", "real", len(test), 1e-4),
        *(error, error / float(abs(exact).max()), 1.0, error < 1e-4),
    )
    if embedded:
        embed_preprocessing(model, STEPS)
        content, images = model.SerializeToString(), test
    samples = pack_samples([Probe("random", None, images[:4], [scores[:4]])])
    shape = (-1, SIDE, SIDE, 3) if embedded else (-1, 3, SIDE, SIDE)
    files = {"model.onnx": content, "parity.safetensors": samples}
    manifest = Manifest(
        name="digits",
        precision="fp32",
        base={"model": "linear"},
        inputs=(TensorSpec("input", "uint8" if embedded else "float32", shape),),
        outputs=(TensorSpec("logits", "float32", (-1, 10)),),
        preprocessing=(
            dataclasses.replace(STEPS, layout="NHWC", embedded=True) if embedded else STEPS
        ),
        classes=NAMES,
        batch=BatchProfile(1, 4, 16),
        engine=None,
        certificate=(link,),
        real_images=f"{len(test)} test images of digits",
        accuracy=Accuracy("digits", len(test), (scores.argmax(1) == truth).mean(), "onnxruntime"),
        tools={"onnx": onnx.__version__},
        files={name: FileEntry.of(data) for name, data in files.items()},
    )
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_manifest(dataclasses.replace(manifest, **changes), folder)
    return folder


def _linear(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["row"]),
            helper.make_node("Gemm", ["row", "w", "b"], ["logits"], transB=1),
        ],
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
