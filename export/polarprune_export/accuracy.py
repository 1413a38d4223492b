"""How good an exported model is on a whole test split."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from polarprune.errors import DataError
from polarprune.manifest import Accuracy, Preprocessing
from polarprune.runs.evaluation import images_at_once
from polarprune.tasks import build_task
from polarprune.tasks.protocol import scores_of
from polarprune_export.onnx_session import Array, open_session, run_session
from polarprune_export.parity_samples import restore_pixels

if TYPE_CHECKING:
    from polarprune.datasets import Dataset

BATCH = 64

Progress = Callable[[str, int, int], None]
Predict = Callable[[Array], Any]


def onnx_accuracy(
    model: bytes,
    data: "Dataset",
    pixels: Preprocessing | None = None,
    measured_with: str = "onnxruntime",
    progress: Progress | None = None,
) -> Accuracy:
    """With ONNX Runtime on the CPU.

    Read is what training reads of the network (scores_of): the output `out`, or the first one.

    Args:
        measured_with: for the record, where what is measured is an emulation.
        pixels: how images become the network's input, of a model that takes pixels; else None.
    """
    session = open_session(model)
    outputs = [output.name for output in session.get_outputs()]

    def predict(images: Array) -> Any:
        given = images if pixels is None else restore_pixels(images, pixels)
        found = map(torch.from_numpy, run_session(session, given, chunk=BATCH))
        return scores_of(dict(zip(outputs, found, strict=True)))

    return _accuracy(predict, data, measured_with, progress)


def torch_accuracy(
    network: nn.Module, data: "Dataset", progress: Progress | None = None
) -> Accuracy:
    """Of a network in float32 on the CPU; the network is expected there, in eval mode."""

    @torch.no_grad()
    def predict(images: Array) -> Any:
        return network(torch.from_numpy(images))

    return _accuracy(predict, data, "torch", progress)


def _accuracy(
    predict: Predict, data: "Dataset", measured_with: str, progress: Progress | None
) -> Accuracy:
    task = build_task(data.task)
    tally, seen = task.tally(), 0
    count = min(BATCH, images_at_once(data.image_size))
    for images, labels in data.test.batches(count, shuffle_seed=None, augment=False):
        tally.add(predict(np.ascontiguousarray(images.numpy())), labels)
        seen += len(labels)
        if progress is not None:
            progress(f"{task.headline} with {measured_with}", seen, len(data.test))
    if not seen:
        raise DataError(f"the test split of {data.name} has no images; give one that has")
    figures: dict[str, Any] = {"top1": None, **tally.figures()}
    return Accuracy(data.name, seen, measured_with=measured_with, **figures)
