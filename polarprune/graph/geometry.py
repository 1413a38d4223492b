"""What decides the time of a mixing layer besides its channel counts."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from torch import nn

from polarprune.graph.operator_tables import TRANSPOSED

Kind = Literal["conv", "conv_transpose", "linear"]
_WORDS: dict[Kind, str] = {
    "conv": "convolution",
    "conv_transpose": "transposed convolution",
    "linear": "linear layer",
}


@dataclass(frozen=True, order=True)
class Geometry:
    """The shape of a convolution, transposed convolution or linear layer without its channels.

    Attributes:
        kernel, stride, padding, dilation: one number a spatial axis; empty of a linear layer.
        size: of one input image, pixels a spatial axis; of a linear layer its rows an image.
        group: input and output channels of one group; None where all inputs meet all outputs.
        copies: what one image has become by then (windows folded into the batch), 1 as a rule.
    """

    kind: Kind
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    group: tuple[int, int] | None = None
    copies: int = 1

    def __str__(self) -> str:
        """As people say it: 3x3 convolution, stride 2, at 56x56."""
        size = "x".join(map(str, self.size))
        if self.kind == "linear":
            return f"linear layer of {size} row{'s' if prod(self.size) > 1 else ''}"
        words = f"{'x'.join(map(str, self.kernel))} {_WORDS[self.kind]}"
        if self.group is not None:
            words += ", depthwise" if self.group[0] == 1 else f", groups of {self.group[0]}"
        if set(self.stride) != {1}:
            words += f", stride {'x'.join(map(str, dict.fromkeys(self.stride)))}"
        return f"{words}, at {size}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Geometry":
        """What as_dict gave, through JSON or not.

        Raises:
            ValueError: these are not the fields of a geometry.
        """
        try:
            tuples = {
                name: tuple(map(int, values[name]))
                for name in ("kernel", "stride", "padding", "dilation", "size")
            }
            group = values["group"]
            if values["kind"] not in _WORDS:
                raise ValueError(f"there is no layer of kind {values['kind']!r}")
            pair = None if group is None else (int(group[0]), int(group[1]))
            return cls(values["kind"], **tuples, group=pair, copies=int(values["copies"]))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"no geometry of a layer: {error!r}") from None


def geometry_of(module: nn.Module, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a layer that reads a tensor of this shape, (1, ...) of one image."""
    if isinstance(module, nn.Linear):
        return Geometry("linear", (), (), (), (), (prod(shape[:-1]),))
    assert isinstance(module, nn.modules.conv._ConvNd)
    padding = module.padding
    if padding == "same":
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        padding = tuple((kernel - 1) * dilation // 2 for kernel, dilation in pairs)
    elif isinstance(padding, str):
        padding = (0,) * len(module.kernel_size)
    groups = module.groups
    return Geometry(
        kind="conv_transpose" if isinstance(module, TRANSPOSED) else "conv",
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(int(side) for side in padding),
        dilation=tuple(module.dilation),
        size=tuple(shape[2:]),
        group=None
        if groups == 1
        else (module.in_channels // groups, module.out_channels // groups),
        copies=shape[0],
    )
