"""The repertoire of random_graphs.py: what people write in a forward, one class an idiom.

A block is built for the tensor that it will be given and adapts itself to it (a width that cannot
be halved gets a convolution in front), so that any sequence of blocks is a network. How a thing is
*written* (module, function, method, in place, sizes read or in numbers) is an option like any
other.
"""

from random_branches import Block, Concat, Dense, Residual, Sum
from random_descriptions import DECLARED, make, name_of
from random_heads import DenseMap, FlattenImage, FlattenLinear, PoolLinear, Several
from random_layers import Activation, Conv, Norm, Pool, Resize, Shared, Transposed
from random_movement import PadChannels, Parts, Pixels, Shuffle, Tokens
from random_products import Product, SelectiveKernel, SplitAttention, SqueezeExcite
from torch import nn

__all__ = ["HEADS", "REPERTOIRE", "make"]

# In the order in which a seed draws: another order would give every seed another network.
_BLOCKS: tuple[type[nn.Module], ...] = (
    Conv, Transposed, Norm, Activation, Pool, Resize, Residual, Block, Sum, SqueezeExcite, Product,
    Concat, Dense, Parts, Shuffle, Pixels, PadChannels, Tokens, SplitAttention, SelectiveKernel,
    Shared,
)  # fmt: skip
_HEADS: tuple[type[nn.Module], ...] = (PoolLinear, FlattenLinear, FlattenImage, DenseMap, Several)

REPERTOIRE = {name_of(kind): kind for kind in _BLOCKS}
HEADS = {name_of(kind): kind for kind in _HEADS}
assert REPERTOIRE.keys() | HEADS.keys() == DECLARED.keys(), "a block is declared but never drawn"
