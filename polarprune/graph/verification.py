"""First stage, part: a traced network compared with the untraced one, in both modes.

Convolutions and linear layers are nearly all of the work, and the graph calls copies of the very
layers that the network calls. Where such a copy still is what it was when it was made, both sides
compute a cheap stand-in in its place: a number for each position that depends on every channel.
So the comparison costs little, and equal means bit for bit: the same layers are called on the same
values in the same order. Where that fails, everything is computed in earnest, in float64.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from polarprune.errors import Refused, first_line
from polarprune.graph.comparing import NoDropout, forward_float64, in_mode, relative_error
from polarprune.graph.shapes import known_shape

# Traced and untraced run the same kernels on the same float64 numbers; only a different order of
# evaluation could differ, and tracing does not change it.
TRACE_RTOL = 1e-12
# Sides at which they are compared, the first that the network can take: control flow on sizes
# cannot be traced at all, so a small image shows what a large one would.
_SIDES = (32, 64)
Versions = dict[int, int]
_TOO_SMALL = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)


def verify_trace(
    net: nn.Module,
    traced: fx.GraphModule,
    example_input: Tensor,
    fresh: Versions,
    *,
    may_shrink: bool,
    only_training: bool,
) -> None:
    """Refuse a graph that computes something else than the network, in either mode.

    Args:
        net: left unmodified.
        traced: has copies of the network's tensors, and may have other layers.
        fresh: what these copies were when they were made: id -> version.
        may_shrink: whether the graph holds for other image sizes than the example's.
        only_training: where the graph calls nothing but the network's own layers and functions, it
            computes in evaluation mode, in which it was traced, what the network does.

    Raises:
        Refused: with the mode and the error.
    """
    modes = (True,) if only_training else (False, True)
    for inputs in _candidates(example_input, may_shrink):
        last = inputs.shape[2:] == example_input.shape[2:]
        try:
            if all(_identical(net, traced, inputs, fresh, training) for training in modes):
                return
        except _TOO_SMALL:
            if not last:
                continue  # too small for this network
        try:
            expected = [forward_float64(net, inputs, training) for training in (False, True)]
        except _TOO_SMALL:
            if last:
                raise
            continue
        for training, outputs in zip((False, True), expected, strict=True):
            error = relative_error(outputs, _traced_outputs(net, traced, inputs, training))
            if not error <= TRACE_RTOL:
                raise _changed(net, expected, training, error)
        return


def _changed(net: nn.Module, expected: list[Any], training: bool, error: float) -> Refused:
    what = f"tracing changes what {type(net).__name__} computes in "
    what += f"{'training' if training else 'evaluation'} mode (relative error {error:.1e})"
    if pytree.tree_structure(expected[0]) != pytree.tree_structure(expected[1]):
        what = f"{type(net).__name__} has other outputs in training mode than in evaluation mode"
    return Refused(f"{what}; remove control flow that depends on self.training")


def _candidates(example_input: Tensor, may_shrink: bool) -> list[Tensor]:
    inputs = example_input.detach()[:2]
    if inputs.numel() and bool((inputs == inputs.flatten()[0]).all()):
        # Zeros would hide differences: a fresh network maps them to zeros everywhere.
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(inputs.shape, generator=generator).to(inputs)
    if len(inputs) == 1:  # batch statistics need two values a channel
        inputs = torch.cat([inputs, inputs.flip(-1)])
    if not may_shrink or inputs.dim() != 4:
        return [inputs]
    sides = [side for side in _SIDES if side < min(inputs.shape[2:])]
    return [*(inputs[:, :, :side, :side] for side in sides), inputs]


def _identical(
    net: nn.Module, traced: fx.GraphModule, inputs: Tensor, fresh: Versions, training: bool
) -> bool:
    """Whether both give the same bits; False also where they cannot be compared so.

    Raises:
        Refused: one of them draws random numbers that the other does not.
    """
    stand_ins = _stand_ins(net, traced, fresh)
    with _replaced(net, stand_ins), _Draws() as draws:
        expected = _forward(net, inputs, training)
    try:
        with _replaced(traced, stand_ins), _Draws() as traced_draws:
            got = _forward(traced, inputs, training)
    except Exception:
        return False  # the comparison in float64 says what is wrong
    if draws.any != traced_draws.any:
        raise Refused(
            f"{type(net).__name__} draws random numbers in its own code in training mode, which a "
            "trace does not keep; use a dropout layer or torchvision.ops.StochasticDepth"
        )
    return relative_error(expected, got) == 0


class _Draws:
    """Whether random numbers are drawn inside; afterwards the generators are as before."""

    any = False

    def __enter__(self) -> "_Draws":
        self._torch, self._python = torch.get_rng_state(), random.getstate()
        return self

    def __exit__(self, *_: object) -> None:
        torch_too = not torch.equal(torch.get_rng_state(), self._torch)
        self.any = torch_too or random.getstate() != self._python
        torch.set_rng_state(self._torch)
        random.setstate(self._python)


def _stand_ins(
    net: nn.Module, traced: fx.GraphModule, fresh: Versions
) -> dict[str, Callable[[Tensor], Tensor]]:
    """By path, for each layer whose copy is still what it was when it was made."""
    copies = dict(traced.named_modules())
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, layer in net.named_modules():
        twin = copies.get(name)
        if twin is None or type(layer) not in (nn.Conv2d, nn.Linear):
            continue
        if type(twin) is not type(layer):
            continue
        whole = all(fresh.get(id(p)) == p._version for p in twin.parameters())
        if whole and twin.extra_repr() == layer.extra_repr():
            found[name] = _stand_in(layer, seed=len(found))
    return found


def _stand_in(layer: nn.Module, seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = layer.get_parameter("weight")
    linear = isinstance(layer, nn.Linear)
    count_in = layer.in_features if linear else layer.in_channels
    count_out = layer.out_features if linear else layer.out_channels
    assert isinstance(count_in, int)
    assert isinstance(count_out, int)
    read = torch.randn(count_in, generator=generator).to(weight) / count_in**0.5
    write = torch.randn(count_out, generator=generator).to(weight)
    # Their argument is called as torch calls it: a network may give it by name.
    if linear:
        return lambda input: torch.tanh((input * read).sum(-1, keepdim=True)) * write
    read, write = read.reshape(-1, 1, 1), write.reshape(-1, 1, 1)

    def convolution(input: Tensor) -> Tensor:
        shape = known_shape(layer, (input,))
        if shape is None or input.shape[1] != count_in:
            raise ValueError("not what this convolution takes")
        seen = (input * read).sum(-3, keepdim=True)
        return torch.tanh(F.adaptive_avg_pool2d(seen, (shape[2], shape[3]))) * write

    return convolution


@contextmanager
def _replaced(net: nn.Module, stand_ins: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Layers compute their stand-ins inside."""
    patched = []
    try:
        for name, stand_in in stand_ins.items():
            layer = net.get_submodule(name)
            layer.forward = stand_in
            patched.append(layer)
        yield
    finally:
        for layer in patched:
            del layer.forward


def _forward(net: nn.Module, inputs: Tensor, training: bool) -> Any:
    # Running statistics are written in training mode: never into the network's own.
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    quiet = redirect_stderr(StringIO())  # torch.fx prints where a graph fails, before it raises
    with in_mode(net, training), torch.no_grad(), NoDropout(), quiet:
        return functional_call(net, buffers, (inputs.clone(),))


def _traced_outputs(net: nn.Module, traced: fx.GraphModule, inputs: Tensor, training: bool) -> Any:
    try:
        return forward_float64(traced, inputs, training)
    except (*_TOO_SMALL, TypeError, AttributeError) as error:
        line = first_line(error)
        raise Refused(f"{type(net).__name__} fails once it is traced: {line}") from error
