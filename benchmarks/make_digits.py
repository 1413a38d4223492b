"""Write the embedded digits file from scikit-learn's `load_digits`; done once.

    python benchmarks/make_digits.py polarprune/datasets/digits.npz

Needs scikit-learn, which polarprune itself never imports. The file is the same, byte for byte,
each time it is written with the same zlib.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

_TEST_IMAGES = 360
_SPLIT_SEED = 0


def write_digits(path: Path) -> None:
    """Write images (n, 8, 8) of 0..16 and labels (n,) of both splits, all uint8."""
    data, target = load_digits(return_X_y=True)
    images = data.reshape(-1, 8, 8).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        target.astype(np.uint8),
        test_size=_TEST_IMAGES,
        stratify=target,
        random_state=_SPLIT_SEED,
    )
    np.savez_compressed(
        path,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
