"""Every kind of layer that is timed by itself: its geometry, its counts, and torch's own layer."""

from torch import nn

from polarprune.graph.geometry import Geometry

PLAIN = Geometry("conv", (3, 3), (1, 1), (1, 1), (1, 1), (6, 6))
KINDS = {
    "convolution": (PLAIN, 5, 7, nn.Conv2d(5, 7, 3, padding=1)),
    "strided, dilated, one dimension": (
        Geometry("conv", (5,), (2,), (0,), (2,), (20,)), 3, 4, nn.Conv1d(3, 4, 5, 2, 0, 2)
    ),
    "three dimensions": (
        Geometry("conv", (1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1), (2, 6, 6)), 3, 4,
        nn.Conv3d(3, 4, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ),
    "depthwise": (
        Geometry("conv", (3, 3), (2, 2), (1, 1), (1, 1), (7, 7), (1, 1)), 6, 1,
        nn.Conv2d(6, 6, 3, 2, 1, groups=6),
    ),
    "grouped": (
        Geometry("conv", (1, 1), (1, 1), (0, 0), (1, 1), (4, 4), (2, 3)), 4, 1,
        nn.Conv2d(8, 12, 1, groups=4),
    ),
    "transposed": (
        Geometry("conv_transpose", (2, 2), (2, 2), (0, 0), (1, 1), (4, 4)), 3, 5,
        nn.ConvTranspose2d(3, 5, 2, 2),
    ),
    "linear": (Geometry("linear", (), (), (), (), (3,)), 4, 6, nn.Linear(4, 6)),
}  # fmt: skip
