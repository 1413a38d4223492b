"""Top-1 accuracy of an exported model over a whole test split."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from polarprune.errors import DataError
from polarprune.manifest import Accuracy
from polarprune_export.onnx_session import Array, open_session

if TYPE_CHECKING:
    from polarprune.datasets import Dataset

BATCH = 64

Progress = Callable[[str, int, int], None]
Predict = Callable[[Array], Array]


def onnx_accuracy(model: bytes, data: "Dataset", progress: Progress | None = None) -> Accuracy:
    """Top-1 with ONNX Runtime on the CPU; the model's batch size is free, its first output read."""
    session = open_session(model)
    name = session.get_inputs()[0].name

    def predict(images: Array) -> Array:
        scores: Array = session.run(None, {name: images})[0]
        return scores

    return _accuracy(predict, data, "onnxruntime", progress)


def torch_accuracy(
    network: nn.Module, data: "Dataset", progress: Progress | None = None
) -> Accuracy:
    """Top-1 of a network in float32 on the CPU; the network is expected there, in eval mode."""

    @torch.no_grad()
    def predict(images: Array) -> Array:
        scores: Array = network(torch.from_numpy(images)).numpy()
        return scores

    return _accuracy(predict, data, "torch", progress)


def _accuracy(
    predict: Predict, data: "Dataset", measured_with: str, progress: Progress | None
) -> Accuracy:
    right = seen = 0
    for images, labels in data.test.batches(BATCH, shuffle_seed=None, augment=False):
        scores = predict(np.ascontiguousarray(images.numpy()))
        right += int((scores.argmax(axis=1) == labels.numpy()).sum())
        seen += len(labels)
        if progress is not None:
            progress(f"top-1 with {measured_with}", seen, len(data.test))
    if not seen:
        raise DataError(f"the test split of {data.name} has no images; give one that has")
    return Accuracy(data.name, seen, right / seen, measured_with)
