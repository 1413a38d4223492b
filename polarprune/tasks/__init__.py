"""What a network is trained for: one task a file, all behind one small protocol (protocol.py)."""

from polarprune.option_values import check_choice
from polarprune.tasks.classification import Classification
from polarprune.tasks.protocol import Tally, Task
from polarprune.tasks.segmentation import Segmentation

__all__ = [
    "CLASSIFICATION",
    "TASKS",
    "Classification",
    "Segmentation",
    "Tally",
    "Task",
    "build_task",
]

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classification, Segmentation)}
CLASSIFICATION = Classification()


def build_task(name: str, label_smoothing: float = 0.0) -> Task:
    """The task of this name.

    Args:
        label_smoothing: mass that the cross-entropy spreads over all classes, 0..1.

    Raises:
        ConfigError: there is none.
    """
    check_choice("--task", name, TASKS)
    return TASKS[name](label_smoothing)
