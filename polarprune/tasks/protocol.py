"""What a task has to say; the training loop knows no more of the one at work."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from jaxtyping import Float, Int64
from torch import Tensor


class Tally(Protocol):
    """Figures of a split, batch by batch."""

    def add(self, outputs: Any, labels: Int64[Tensor, "n ..."]) -> None:
        """Count one batch of a network's outputs."""
        ...

    def figures(self) -> dict[str, float]:
        """What was counted, 0..1 each; the task's headline is among them."""
        ...


class Task(ABC):
    """A loss, and what is counted on the test images.

    Attributes:
        headline: the figure that stands for all.
    """

    name: ClassVar[str]
    headline: ClassVar[str]

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Let the cross-entropy spread so much of the mass over all classes, 0..1."""
        self.label_smoothing = label_smoothing

    @abstractmethod
    def check(self, outputs: Any, classes: int, shape: tuple[int, ...]) -> None:
        """Refuse a network whose outputs are not what the task is about.

        Args:
            outputs: for a batch of images of this shape (n, c, h, w).

        Raises:
            ConfigError: what it gives, and what is wanted.
        """

    @abstractmethod
    def loss(self, outputs: Any, labels: Int64[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """The task's own loss, in float32."""

    @abstractmethod
    def tally(self) -> Tally:
        """Nothing counted yet."""


def scores_of(outputs: Any) -> Any:
    """What a network says about classes: its one tensor, or the `out` of a dict."""
    if isinstance(outputs, dict):
        return outputs.get("out", next(iter(outputs.values()), None))
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs


def described(outputs: Any) -> str:
    """Outputs in words, for an error."""
    scores = scores_of(outputs)
    if isinstance(scores, Tensor):
        return f"scores of shape {tuple(scores.shape)}"
    return f"a {type(scores).__name__}"
