"""Labelled images by name: `digits`, `cifar10`, `cifar100`, or a folder of class folders."""

from polarprune.datasets.loading import load_dataset
from polarprune.datasets.splits import IMAGENET_MEAN, IMAGENET_STD, Dataset, Split

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Dataset", "Split", "load_dataset"]
