"""A run folder on disk: what one training run leaves behind and others read."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.errors import RunFolderError, of_another_version

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CUTS_FILE = "cuts.jsonl"
OPENNESS_FILE = "openness.jsonl"
BENCH_FILE = "bench.jsonl"
CHECKPOINT = "checkpoint"
PRUNED = "pruned"
PLOTS = "plots"
GO_ON = "go on by the command that began it, with --resume"
_LARGEST_SIDE = 1 << 16


def being_written(path: Path) -> Path:
    """Where the next content of a file is written before it takes the file's place."""
    return path.with_name(path.name + ".new")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never half of one."""
    fresh = being_written(path)
    fresh.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(fresh, path)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a .jsonl file; none where there is no file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # the last line of a run that was killed while it wrote
    return found


def keep_lines(path: Path, key: str, most: int) -> None:
    """Drop the lines of a .jsonl file that lie beyond a checkpoint (`key` above `most`)."""
    kept = [line for line in read_lines(path) if line[key] <= most]
    if path.exists():
        fresh = being_written(path)
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(fresh, path)


def means_a_path(name: str) -> bool:
    """Whether somebody who gives this name means a file or folder, here or not, and no model.

    Only what stands behind a model's colon has separators (timm:hf-hub:owner/name).
    """
    return os.sep in name.partition(":")[0] or Path(name).exists()


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and 0 < value <= _LARGEST_SIDE


class RunFolder:
    """What is in a run folder, for those who come after training."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read run.json.

        Raises:
            RunFolderError: the folder is no run folder.
        """
        self.path = Path(path)
        try:
            self.document: dict[str, Any] = json.loads((self.path / RUN_FILE).read_text())
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} holds no {RUN_FILE}; give a run folder") from error
        except ValueError as error:
            raise self._broken(f"is not JSON ({error})") from error
        if not isinstance(self.document, dict):
            raise self._broken("is not an object")
        schema = self.document.get("schema")
        if schema != SCHEMA:
            raise RunFolderError(of_another_version(self.path / RUN_FILE, schema, SCHEMA))
        needed = ("config", "mean", "std", "classes", "input_shape", "resize_side")
        missing = [key for key in needed if key not in self.document]
        if missing:
            raise self._broken(f"lacks {', '.join(missing)}")
        config, sides = self.document["config"], self.document["input_shape"]
        if not isinstance(config, dict) or not isinstance(config.get("model"), str):
            raise self._broken("names no model")
        if not isinstance(sides, list) or len(sides) != 3 or not all(map(_is_side, sides)):
            raise self._broken("has an input_shape that is not three sides, channels first")

    def _broken(self, reason: str) -> RunFolderError:
        return RunFolderError(f"{self.path / RUN_FILE} {reason}; copy the whole run folder again")

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with."""
        return dict(self.document["config"])

    @property
    def model(self) -> str:
        """The --model name of the base architecture."""
        return str(self.config["model"])

    @property
    def task(self) -> str:
        """What it was trained for; a run from before there was another task is a classifier."""
        return str(self.config.get("task", "classification"))

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the outputs."""
        return list(self.document["classes"])

    @property
    def class_count(self) -> int:
        """The number of outputs; there may be more of them than classes in the data."""
        return int(self.config.get("num_classes") or len(self.classes))

    @property
    def mean(self) -> tuple[float, ...]:
        """Normalisation mean on the 0..1 scale, RGB."""
        return tuple(self.document["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Normalisation standard deviation on the 0..1 scale, RGB."""
        return tuple(self.document["std"])

    @property
    def resize_side(self) -> int:
        """What the shorter side of an image is resized to before its centre is cropped."""
        return int(self.document["resize_side"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.document["input_shape"]
        return channels, height, width

    @property
    def result(self) -> dict[str, Any]:
        """The figures of the finished run.

        Raises:
            RunFolderError: the run is not finished.
        """
        found = self.document.get("result")
        if found is None:
            raise self.unfinished()
        return dict(found)

    def unfinished(self) -> RunFolderError:
        """The error for what only a finished run has."""
        return RunFolderError(f"{self.path} is not finished; {GO_ON}")

    def check_whole(self) -> None:
        """Refuse a finished run without its network.

        Raises:
            RunFolderError: the folder was not copied whole.
        """
        if self.document.get("result") is not None and not (self.path / PRUNED).is_dir():
            raise RunFolderError(
                f"{self.path} has a result and no {PRUNED}/; copy the whole run folder again"
            )

    def cuts(self) -> list[dict[str, Any]]:
        """The lines of cuts.jsonl."""
        return read_lines(self.path / CUTS_FILE)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.path / METRICS_FILE)

    def openness(self) -> list[dict[str, Any]]:
        """The lines of openness.jsonl: per step and site the open probability of every unit."""
        return read_lines(self.path / OPENNESS_FILE)

    def pruned_network(self) -> "nn.Module":
        """The small network, rebuilt without the code that defined it."""
        from polarprune.network_files import load_network

        self.check_whole()
        if not (self.path / PRUNED).is_dir():
            raise self.unfinished()
        return load_network(self.path / PRUNED)

    def base_network(self) -> "nn.Module":
        """The base architecture of the run, freshly initialised."""
        from polarprune.networks import build_network

        return build_network(self.model, num_classes=self.class_count)
