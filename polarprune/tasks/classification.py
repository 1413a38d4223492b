"""One class an image: cross-entropy, top-1."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from polarprune.errors import ConfigError
from polarprune.tasks.protocol import Task, described, scores_of


class Classification(Task):
    """Scores (n, classes)."""

    name = "classification"
    headline = "top1"

    def check(self, outputs: Any, classes: int, shape: tuple[int, ...]) -> None:
        """See `Task.check`."""
        scores = scores_of(outputs)
        if isinstance(scores, Tensor) and tuple(scores.shape) == (shape[0], classes):
            return
        segments = isinstance(scores, Tensor) and scores.dim() == 4
        raise ConfigError(
            f"the model gives {described(outputs)} for {shape[0]} images, a classifier gives "
            f"({shape[0]}, {classes}); "
            + ("train it with --task segmentation" if segments else "choose another model")
        )

    def loss(self, outputs: Any, labels: Int64[Tensor, "n"]) -> Float[Tensor, ""]:
        """Cross-entropy."""
        scores = scores_of(outputs).float()
        return F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)

    def tally(self) -> "Top1":
        """See `Task.tally`."""
        return Top1()


class Top1:
    """The share of images whose class has the highest score."""

    def __init__(self) -> None:
        self._right: Tensor | int = 0
        self._seen = 0

    def add(self, outputs: Any, labels: Int64[Tensor, "n"]) -> None:
        """See `Tally.add`."""
        self._right = self._right + (scores_of(outputs).argmax(1) == labels).sum()
        self._seen += len(labels)

    def figures(self) -> dict[str, float]:
        """See `Tally.figures`."""
        return {"top1": int(torch.as_tensor(self._right)) / self._seen if self._seen else 0.0}
