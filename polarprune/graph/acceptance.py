"""First stage, part: networks that a trace would change, refused by name before it is made."""

import keyword

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from polarprune.errors import Refused
from polarprune.graph.operator_tables import PLAIN_MODULES
from polarprune.graph.operators import layer_type

# What torch.fx and the gates call their own on a graph module.
_TAKEN = {name for name in dir(fx.GraphModule) if not hasattr(nn.Module, name)}
_TAKEN |= {"gating", "meta"}


def refuse_what_cannot_be_traced(net: nn.Module, example_input: Tensor) -> None:
    """Say in one line why a network cannot be traced into one that computes and trains the same.

    Raises:
        Refused: naming the layer, and what to do.
    """
    if not isinstance(net, nn.Module):
        raise Refused(f"a network is an nn.Module, got {type(net).__name__} ({net})")
    if not isinstance(example_input, Tensor):
        raise Refused(
            f"the example input must be a tensor (n, ...), got {type(example_input).__name__}"
        )
    if example_input.dim() < 2 or not len(example_input):
        raise Refused(
            f"the example input must be a batch (n, ...), got shape {tuple(example_input.shape)}"
        )
    if example_input.is_meta or any(tensor.is_meta for tensor in net.parameters()):
        raise Refused("a network on the meta device has no numbers to compare; give it some first")
    if torch.is_inference_mode_enabled():
        raise Refused("gates cannot be attached inside of torch.inference_mode(); leave it first")
    for name, module in net.named_modules():
        _refuse_module(name or type(net).__name__, module)
    tensors = [*net.named_parameters(), *net.named_buffers()]
    for path in dict.fromkeys([*(n for n, _ in net.named_modules()), *(n for n, _ in tensors)]):
        top, *_ = parts = path.split(".")
        taken = top == "gating" or (top in _TAKEN and not isinstance(net, fx.GraphModule))
        word = top if taken else next((p for p in parts if keyword.iskeyword(p)), None)
        if word is not None:
            raise Refused(f"torch.fx cannot have the name {word!r} in {path}; rename it")


def _refuse_module(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        # A hook may change what its layer computes (old weight_norm does); a cut layer loses it.
        raise Refused(
            f"layer {name} has a forward hook, which a cut would lose; remove it first: "
            "handle.remove(), torch.nn.utils.remove_weight_norm or remove_spectral_norm, "
            "torch.nn.utils.prune.remove; of a lazy layer, run the network once"
        )
    if parametrize.is_parametrized(module):
        if layer_type(module) not in PLAIN_MODULES:
            raise Refused(
                f"{name} has a parametrized tensor of its own, which a file cannot hold; "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if _changes_when_read(module):
            raise Refused(
                f"the weight of {name} changes as it is read in training (spectral_norm); "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )


def refuse_own_modes(owned: nn.Module) -> None:
    """Refuse a network whose train() leaves some layers as they are (frozen batch norms).

    Args:
        owned: a copy, which is left in evaluation mode.

    Raises:
        Refused: naming the layer.
    """
    own = any(type(module).train is not nn.Module.train for module in owned.modules())
    for mode in (True, False) if own else ():
        owned.train(mode)
        for name, module in owned.named_modules():
            if module.training is not mode:
                raise Refused(
                    f"{name or type(owned).__name__} keeps a mode of its own when train() or eval()"
                    " is called, which a traced copy cannot; take that train() out, and put the "
                    "layers in question into evaluation mode (their modes are kept)"
                )


def _changes_when_read(module: nn.Module) -> bool:
    """Whether a parametrization writes its buffers in training mode."""
    modes = {part: part.training for part in module.modules()}
    held = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        module.train()
        with torch.no_grad():
            for name in module.parametrizations:  # type: ignore[union-attr]
                getattr(module, name)
        return any(not torch.equal(held[n], buffer) for n, buffer in module.named_buffers())
    finally:
        for part, mode in modes.items():
            part.training = mode
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(held[name])
