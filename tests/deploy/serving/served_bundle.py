"""The bundle that most tests serve, and its network without a server."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polarprune_export.onnx_session import open_session, run_session
from tests.small_bundles import SIDE, write_small_bundle

Images = NDArray[np.float32]

MODEL = "small"
MOST = 8
"""Images in one request, as the bundle says."""
BODY_MB = 12
"""The bound of one request in the tests' common server, MiB."""


class Reference:
    """The small network in ONNX Runtime itself."""

    def __init__(self, bundle: Path) -> None:
        """Open the bundle's ONNX file."""
        self.session = open_session((bundle / "model.onnx").read_bytes(), threads=1)

    def __call__(self, images: Images) -> Images:
        """The logits of some images."""
        (logits,) = run_session(self.session, images, chunk=MOST)
        return logits


def make_folder(folder: Path) -> Path:
    """A folder with the small bundle in it."""
    write_small_bundle(folder / MODEL)
    return folder


def some_images(seed: int, rows: int = 1) -> Images:
    """Images that no other seed gives."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((rows, 3, SIDE, SIDE)).astype(np.float32)
