"""Batch normalisation folded into the convolution or linear layer before it.

With the running statistics m, v and the affine part a, b of the normalisation, and s = a / sqrt(v +
eps), the layer y = W x + c followed by the normalisation is y = (s W) x + (s (c - m) + b). This is
done here, in float64, so that the exported weights do not depend on the exporter's own optimiser,
and so that a cast to a lower precision comes after it.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# In evaluation mode these hand their input on; between a convolution and a norm they hide the pair.
PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Unfolded:
    """A normalisation behind a mixing layer that was left where it is, and why."""

    norm: str
    layer: str
    reason: str


def fold_batchnorms(
    net: fx.GraphModule, example_input: Tensor
) -> tuple[fx.GraphModule, list[Unfolded]]:
    """A copy in evaluation mode without the normalisations that directly follow a mixing layer.

    1. convolution -> norm, grouped and transposed ones included;
    2. linear -> norm, where the linear layer's output is (n, c);
    3. refused, and listed: the layer's output is read elsewhere too, or is an output; the layer or
       the norm is called twice; the norm has no running statistics.

    Args:
        net: plain `torch.nn` layers; left unmodified.
        example_input: its shape decides case 2.

    Exactness: rounding. The weights are computed in float64 and rounded once to the layer's dtype.
    """
    folded = copy.deepcopy(net).eval()
    _drop_pass_through(folded)
    modules = dict(folded.named_modules())
    with torch.no_grad():
        ShapeProp(folded).propagate(example_input)
    calls = _call_counts(folded)
    unfolded = []
    for node in list(folded.graph.nodes):
        pair = _layer_and_norm(node, modules)
        if pair is None:
            continue
        before, layer, norm = pair
        reason = _reason_against(before, node, layer, norm, calls)
        if reason is not None:
            unfolded.append(Unfolded(str(node.target), str(before.target), reason))
            continue
        _fold_pair(layer, norm)
        node.replace_all_uses_with(before)
        folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.graph.lint()
    folded.recompile()
    return folded, unfolded


def _drop_pass_through(net: fx.GraphModule) -> None:
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], PASS_THROUGH):
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)


def _call_counts(net: fx.GraphModule) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in net.graph.nodes:
        if node.op == "call_module":
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    return counts


def _layer_and_norm(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[fx.Node, nn.Module, nn.Module] | None:
    """The node before, its layer, and the norm of this node, where these are such a pair."""
    if node.op != "call_module" or not isinstance(modules[str(node.target)], NORMS):
        return None
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return None
    layer = modules[str(before.target)]
    if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
        return None
    return before, layer, modules[str(node.target)]


def _reason_against(
    before: fx.Node, node: fx.Node, layer: nn.Module, norm: nn.Module, calls: dict[str, int]
) -> str | None:
    if len(before.users) > 1:
        return "the layer's output is read elsewhere too"
    if calls[str(before.target)] > 1 or calls[str(node.target)] > 1:
        return "the layer or the norm is called more than once"
    if norm.running_mean is None:
        return "the norm keeps no running statistics"
    if isinstance(layer, nn.Linear) and before.meta["tensor_meta"].shape.numel() != (
        before.meta["tensor_meta"].shape[0] * layer.out_features
    ):
        return "the linear layer's output is not (n, c)"
    return None


@torch.no_grad()
def _fold_pair(layer: nn.Module, norm: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    mean, variance = _wide(norm, "running_mean"), _wide(norm, "running_var")
    assert mean is not None
    assert variance is not None
    scale = (variance + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    gain, shift = _wide(norm, "weight"), _wide(norm, "bias")
    if gain is not None:
        scale = scale * gain
    old_bias = _wide(layer, "bias")
    bias = (-mean if old_bias is None else old_bias - mean) * scale
    if shift is not None:
        bias = bias + shift
    filters = weight.double() * _filter_scale(layer, scale, weight)
    layer.weight = nn.Parameter(filters.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)


def _wide(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer in float64, or None where the module was made without it."""
    tensor = getattr(module, name)
    return tensor.double() if isinstance(tensor, Tensor) else None


def _filter_scale(layer: nn.Module, scale: Tensor, weight: Tensor) -> Tensor:
    """One scale an output channel, shaped to multiply the weight."""
    if not isinstance(layer, TRANSPOSED):
        return scale.view(-1, *[1] * (weight.dim() - 1))  # (c_out, c_in / g, k, ...)
    per_group = scale.view(layer.groups, 1, -1)  # (g, 1, c_out / g)
    rows = per_group.expand(-1, weight.shape[0] // layer.groups, -1).reshape(weight.shape[:2])
    return rows.view(*weight.shape[:2], *[1] * (weight.dim() - 2))  # (c_in, c_out / g, 1, ...)
