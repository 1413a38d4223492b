"""PNG files whose right classes are known: the steps are repeated here with numpy alone."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.known_answers import TOLERANCE, WrongAnswer
from polarprune.manifest import read_manifest, read_verified
from polarprune_deploy.load.http_answers import HttpAnswer
from polarprune_export.onnx_session import open_session


@dataclass(frozen=True, eq=False)
class Picture:
    """A file and the probability of each class."""

    png: bytes
    probabilities: NDArray[np.float64]


def make_pictures(bundle: Path, count: int, seed: int) -> list[Picture]:
    """Coloured noise of just the size that the network takes, so that nothing is resized."""
    manifest = read_manifest(bundle)
    steps = manifest.preprocessing
    assert steps is not None
    assert not steps.embedded
    session = open_session(read_verified(bundle, manifest, "model.onnx"), threads=1)
    generator = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        colour = generator.uniform(40, 215, 3)
        noise = generator.normal(0, 40, (steps.height, steps.width, 3))
        pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
        scaled = (pixels / 255.0 - np.array(steps.mean)) / np.array(steps.std)
        image = scaled.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
        scores = session.run(None, {manifest.inputs[0].name: image})[0][0].astype(np.float64)
        powers = np.exp(scores - scores.max())
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        pictures.append(Picture(file.getvalue(), powers / powers.sum()))
    return pictures


def check_classes(picture: Picture, answer: HttpAnswer, names: tuple[str, ...]) -> float:
    """The largest difference of a probability.

    Raises:
        WrongAnswer: too large a one, or not every class once and the best first.
    """
    try:
        found = json.loads(answer.body)["classes"]
        shares = {entry["name"]: entry["probability"] for entry in found}
        order = [entry["probability"] for entry in found]
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswer(f"no classes ({type(error).__name__}: {error})") from None
    if shares.keys() != set(names) or order != sorted(order, reverse=True):
        raise WrongAnswer(f"not every class once, the best first: {list(shares)}")
    got = np.array([shares[name] for name in names])
    off = float(np.max(np.abs(got - picture.probabilities)))
    if not off <= TOLERANCE:
        raise WrongAnswer(f"a probability is off by {off:.3g}")
    return off
