"""What a network computes with whether or not anything was pruned, as its base's export shows.

A vision transformer or an uneven pooling leaves operators that the lint takes for what pruning
left. Which of the two it is, the same export of the network before pruning tells.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from polarprune.errors import PolarpruneError, Refused
from polarprune_export.channel_maps import MASK
from polarprune_export.onnx_lint import explainable_findings
from polarprune_export.onnx_writer import OnnxReport, write_onnx

MASK_KIND = "mask"


def base_operators(
    report: OnnxReport,
    dense: nn.Module,
    example_input: Tensor,
    unpruned: Callable[[], nn.Module] | None,
) -> dict[str, int]:
    """For `lint_onnx`: of each kind that it finds in the graph, how many the base network has.

    Args:
        report: of the export of `dense`.
        unpruned: makes the network before pruning, called where the lint finds something; it is
            `dense` itself where nothing was pruned. None where it is not known: nothing passes.
    """
    found = _findings(report)
    if unpruned is None or not found:
        return {}
    base = unpruned()
    if base is dense:
        return found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.onnx"
        try:
            own = _findings(
                write_onnx(_trained_looking(base), path, example_input.detach().cpu().float())
            )
        except PolarpruneError:
            return {}
    return {kind: own[kind] for kind in sorted(found) if kind in own}


def refuse_masks(report: OnnxReport, base: Mapping[str, int]) -> None:
    """Masks next to a convolution, which the exporter multiplies into it and hides from the lint.

    Args:
        base: what `base_operators` found.

    Raises:
        Refused: there are more of them than the network has before pruning.
    """
    masks = [left for left in report.unfolded if left.reason == MASK]
    if len(masks) > base.get(MASK_KIND, 0):
        names = ", ".join(f"{left.norm!r} at {left.layer!r}" for left in masks)
        raise Refused(
            f"the network multiplies by zeros and ones: {names}; collapse the network before "
            "exporting it, and report this if you did"
        )


def _findings(report: OnnxReport) -> dict[str, int]:
    import onnx

    masks = sum(left.reason == MASK for left in report.unfolded)
    found = explainable_findings(onnx.load(str(report.path)))
    return {**found, MASK_KIND: masks} if masks else found


@torch.no_grad()
def _trained_looking(base: nn.Module) -> nn.Module:
    """A copy in which no parameter is all 0 or 1: a fresh scale would count as a mask."""
    base = copy.deepcopy(base).cpu().float().eval()
    for parameter in base.parameters():
        if parameter.is_floating_point() and bool(((parameter == 0) | (parameter == 1)).all()):
            parameter.fill_(0.75)
    return base
