"""What every study of changes starts from: two bundles, and what each answers to all requests."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.known_answers import TOLERANCE, Known, compute_known, deviation, draw_images
from benchmarks.serving.twin_bundle import write_twin
from polarprune.errors import ConfigError
from polarprune.manifest import read_manifest

SIZES = (1, 1, 2, 3, 4) * 6


@dataclass(frozen=True)
class Pair:
    """Bundle "A", its twin "B" and the right answers of both; both lie in one scratch folder."""

    folders: dict[str, Path]
    known: dict[str, Known]

    def copy(self, label: str, to: Path) -> None:
        """A fresh copy of one of them; its files are new ones."""
        shutil.copytree(self.folders[label], to)


def make_pair(bundle: Path, scratch: Path, seed: int) -> Pair:
    """Make the twin and compute all answers.

    Raises:
        ConfigError: two answers are so alike that a mix-up would go unseen.
    """
    folders = {"A": scratch / "bundle-a", "B": scratch / "bundle-b"}
    shutil.copytree(bundle, folders["A"])
    write_twin(bundle, folders["B"])
    images = draw_images(read_manifest(bundle), list(SIZES), seed)
    known = {label: compute_known(folder, images) for label, folder in folders.items()}
    cases = [case for each in known.values() for case in each.cases]
    for index, one in enumerate(cases):
        for other in cases[index + 1 :]:
            if len(one.images) == len(other.images) and (
                deviation(one, other.outputs) <= TOLERANCE
            ):
                raise ConfigError("two requests have one answer; a mix-up would go unseen")
    return Pair(folders, known)
