"""First stage, part: a traced network compared with the untraced one, in both modes.

Convolutions and linear layers are by far the most work, and the graph calls the very layers that
the network calls: what such a layer has given to the network, it gives to the graph too, if it is
called with the same input and its copies of the weights are as they were made. So the graph costs
little, and equal means bit for bit. Where that fails, everything is computed again, in float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from polarprune.errors import Refused
from polarprune.graph.comparing import NoDropout, forward_float64, in_mode, relative_error
from polarprune.graph.operators import MIXING_MODULES

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
) -> None:
    """Refuse a graph that computes something else than the network, in either mode.

    Args:
        net: left unmodified.
        traced: has copies of the network's tensors, and may have other layers.
        fresh: what these copies were when they were made: id -> version.
        may_shrink: whether the graph holds for other image sizes than the example's.

    Raises:
        Refused: with the mode and the error.
    """
    for inputs in _candidates(example_input, may_shrink):
        last = inputs.shape[2:] == example_input.shape[2:]
        try:
            modes = (False, True)
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
                mode = "training" if training else "evaluation"
                raise Refused(
                    f"tracing changes what {type(net).__name__} computes in {mode} mode (relative "
                    f"error {error:.1e}); remove control flow that depends on self.training"
                )
        return


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
    """Whether both give the same bits; False also where they cannot be compared so."""
    memory: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with _layers(net, memory, None):
        expected = _forward(net, inputs, training)
    try:
        with _layers(traced, memory, fresh):
            got = _forward(traced, inputs, training)
    except Exception:
        return False  # the comparison in float64 says what is wrong
    return relative_error(expected, got) == 0


def _forward(net: nn.Module, inputs: Tensor, training: bool) -> Any:
    # Running statistics are written in training mode: never into the network's own.
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    with in_mode(net, training), torch.no_grad(), NoDropout():
        return functional_call(net, buffers, (inputs.clone(),))


@contextmanager
def _layers(
    net: nn.Module, memory: dict[str, list[tuple[Tensor, Tensor]]], fresh: Versions | None
) -> Iterator[None]:
    """Convolutions and linear layers write down what they give, or read it from there (fresh)."""
    patched = []
    for name, module in net.named_modules():
        if type(module) in MIXING_MODULES and "forward" not in module.__dict__:
            if fresh is not None and any(fresh.get(id(p)) != p._version for p in module.parameters()):
                continue
            forward = module.forward
            calls = memory.setdefault(name, [])
            module.forward = _recorded(forward, calls) if fresh is None else _replayed(forward, calls)
            patched.append(module)
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _recorded(forward: Any, calls: list[tuple[Tensor, Tensor]]) -> Any:
    def call(x: Tensor) -> Any:
        result = forward(x)
        # Copies: a later operator may change either in place.
        calls.append((x.clone(), result.clone()))
        return result

    return call


def _replayed(forward: Any, calls: list[tuple[Tensor, Tensor]]) -> Any:
    def call(x: Tensor) -> Any:
        for known, result in calls:
            if known.shape == x.shape and torch.equal(known, x):
                return result.clone()
        return forward(x)

    return call


def _traced_outputs(net: nn.Module, traced: fx.GraphModule, inputs: Tensor, training: bool) -> Any:
    try:
        return forward_float64(traced, inputs, training)
    except (*_TOO_SMALL, TypeError, AttributeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"{type(net).__name__} fails once it is traced: {line}") from error
