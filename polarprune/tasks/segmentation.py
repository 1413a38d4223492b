"""One class a pixel: cross-entropy and Dice, mean intersection over union."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from polarprune.errors import ConfigError
from polarprune.tasks.protocol import Task, described, scores_of

IGNORED = 255  # pixels of no class: a border that nobody labelled, what a crop had to pad
# Of the second head that torchvision's networks have while they train; its reference script's.
_AUXILIARY = 0.5


class Segmentation(Task):
    """Scores (n, classes, h, w), of a tensor or of the `out` (and `aux`) of a dict."""

    name = "segmentation"
    headline = "miou"

    def check(self, outputs: Any, classes: int, shape: tuple[int, ...]) -> None:
        """See `Task.check`."""
        scores = scores_of(outputs)
        wanted = (shape[0], classes, *shape[2:])
        if isinstance(scores, Tensor) and tuple(scores.shape) == wanted:
            return
        raise ConfigError(
            f"the model gives {described(outputs)} for images of shape {shape}, segmentation needs "
            f"one score a class and pixel, {wanted}; choose another model or --num-classes"
        )

    def loss(self, outputs: Any, labels: Int64[Tensor, "n h w"]) -> Float[Tensor, ""]:
        """Cross-entropy and Dice; half as much of an auxiliary head's."""
        loss = self._loss_of(scores_of(outputs), labels)
        if isinstance(outputs, dict) and "aux" in outputs:
            loss = loss + _AUXILIARY * self._loss_of(outputs["aux"], labels)
        return loss

    def _loss_of(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores = scores.float()
        entropy = F.cross_entropy(
            scores, labels, ignore_index=IGNORED, label_smoothing=self.label_smoothing
        )
        # Of a batch without a single labelled pixel it is 0 / 0.
        return torch.nan_to_num(entropy) + dice_loss(scores, labels)

    def tally(self) -> "Overlap":
        """See `Task.tally`."""
        return Overlap()


def dice_loss(
    scores: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """One minus the mean over classes of 2 |P T| / (|P| + |T|), P soft, over the whole batch.

    Milletari et al. 2016 (arXiv 1606.04797) with sums in place of squares, as is common.
    """
    classes = scores.shape[1]
    known = labels != IGNORED
    truth = F.one_hot(labels.masked_fill(~known, 0), classes).movedim(-1, 1).to(scores.dtype)
    seen = known.unsqueeze(1)
    p, truth = scores.softmax(1) * seen, truth * seen
    axes = (0, 2, 3)
    both, sum_of = (p * truth).sum(axes), p.sum(axes) + truth.sum(axes)
    return 1 - ((2 * both + 1) / (sum_of + 1)).mean()


class Overlap:
    """Mean intersection over union and mean Dice over classes, of all pixels together.

    A class that is neither in the labels nor predicted does not count.
    """

    def __init__(self) -> None:
        self._pairs: Int64[Tensor, "c c"] | None = None  # [truth, predicted]

    def add(self, outputs: Any, labels: Int64[Tensor, "n h w"]) -> None:
        """See `Tally.add`."""
        scores = scores_of(outputs)
        classes = scores.shape[1]
        known = labels != IGNORED
        pairs = labels[known] * classes + scores.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self._pairs = counts if self._pairs is None else self._pairs + counts

    def figures(self) -> dict[str, float]:
        """See `Tally.figures`."""
        if self._pairs is None or not bool(self._pairs.any()):
            return {"miou": 0.0, "dice": 0.0}
        pairs = self._pairs.double()
        both, either = pairs.diagonal(), pairs.sum(0) + pairs.sum(1)
        there = either > 0
        both, either = both[there], either[there]
        return {
            "miou": float((both / (either - both)).mean()),
            "dice": float((2 * both / either).mean()),
        }
