"""Labelled images by name: `digits`, `cifar10`, `cifar100`, or a folder.

A folder holds class folders, or images and label images (masks.py).
"""

from polarprune.datasets.loading import load_dataset, task_of
from polarprune.datasets.splits import IMAGENET_MEAN, IMAGENET_STD, Dataset, Split

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Dataset", "Split", "load_dataset", "task_of"]
