"""What a mixing operator still reads of the channels that it read in the whole network."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from polarprune.graph.labels import Mix
from polarprune.graph.operator_tables import TRANSPOSED
from polarprune.graph.slicing import Origin


def inputs_left(mix: Mix, layer: nn.Module, origins: Mapping[str, Origin]) -> np.ndarray:
    """The labels, in the whole network, of the channels that are left to it, in their new order.

    Args:
        layer: the mixing layer as it is by now.
        origins: where tensors come from in the whole network; those that are whole may be missing.
    """
    origin = origins.get(f"{mix.layer}.weight")
    kept = {} if origin is None else origin.kept
    transposed = isinstance(layer, TRANSPOSED)
    if transposed or mix.groups == 1:
        places = kept.get(0 if transposed else 1)
        return mix.inputs if places is None else mix.inputs[places.numpy()]
    if 0 not in kept:
        return mix.inputs
    # Of a grouped convolution whole groups are left, and its weight tells which by its outputs.
    each = len(mix.outputs) // mix.groups
    groups = kept[0].numpy()[::each] // each
    found: np.ndarray = mix.inputs.reshape(mix.groups, -1)[groups].reshape(-1)
    return found
