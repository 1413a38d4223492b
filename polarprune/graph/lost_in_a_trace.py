"""First stage, part: what torch.fx traces through and forgets, noticed while it does.

A backward of one's own, a region without gradients, a region without autocast: the graph computes
the same, and trains otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch


class LostInATrace(Exception):
    """Something that a graph cannot hold."""


@contextmanager
def lost_in_a_trace(tracing: Callable[[], bool]) -> Iterator[None]:
    """Raise LostInATrace where the network enters such a region while it is traced.

    Args:
        tracing: whether it is (and not some value looked up in between).
    """

    def raising(what: str, original: Any) -> Any:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if tracing():
                raise LostInATrace(f"{what} would be lost")
            return original(*args, **kwargs)

        return replacement

    regions = {
        torch.no_grad: "torch.no_grad()",
        torch.enable_grad: "torch.enable_grad()",
        torch.inference_mode: "torch.inference_mode()",
        torch.autocast: "torch.autocast()",
    }
    with ExitStack() as stack:
        for region, what in regions.items():
            enter = raising(what, getattr(region, "__enter__"))  # noqa: B009
            stack.enter_context(patch.object(region, "__enter__", enter))
        set_grad = raising("torch.set_grad_enabled()", torch.set_grad_enabled.__init__)
        stack.enter_context(patch.object(torch.set_grad_enabled, "__init__", set_grad))
        bound = torch.autograd.Function.__dict__["apply"].__get__

        def own(cls: type, *args: Any) -> Any:
            return bound(None, cls)(*args)

        apply: Any = classmethod(raising("the backward of an autograd.Function", own))
        stack.enter_context(patch.object(torch.autograd.Function, "apply", apply))
        yield
