"""A class-folder tree whose test images are training images that were held out: to tune on.

    python -m benchmarks.held_out_tree TREE OUT

TREE has train/<class>/*; OUT gets hard links, 500 images of each class in its test folder, drawn
with seed 0. TREE's own test images are not looked at.
"""

import os
import random
import sys
from pathlib import Path

HELD_OUT = 500


def main(tree: Path, out: Path) -> None:
    """Link every training image into one of the two folders."""
    if out.exists():
        sys.exit(f"error: {out} is there already; name a new folder")
    for folder in sorted(path for path in (tree / "train").iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        random.Random(0).shuffle(images)
        for part, chosen in (("test", images[:HELD_OUT]), ("train", images[HELD_OUT:])):
            into = out / part / folder.name
            into.mkdir(parents=True)
            for image in chosen:
                os.link(image, into / image.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
