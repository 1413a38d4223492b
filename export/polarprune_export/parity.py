"""The exported model compared with the network it was made from.

The reference is the network in float64, in evaluation mode, before any folding: an error of the
folding, of the exporter, of a later pass or of ONNX Runtime shows here, whichever it is.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from polarprune.errors import ParityError
from polarprune.manifest import CertificateLink
from polarprune_export.onnx_session import (
    Array,
    open_session,
    run_session,
    scored_output,
    split_batch,
)
from polarprune_export.output_comparison import (
    ONNX_TOLERANCE,
    compare_outputs,
    describe_failure,
)
from polarprune_export.precisions import STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

RANDOM_SEED = 0
RANDOM_IMAGES = 8
LARGE_SIDE = 256
SMALL_SIDE = 64
"""Images up to this side are cheap; of larger ones a quarter is taken."""
CHUNK = 32
AGAINST = "torch (float64)"


@dataclass(frozen=True)
class ParityResult:
    """The links of the certificate chain, and references for a later check by themselves.

    `random` and `real` are (inputs, reference outputs in float64), `real` None without images.
    """

    links: tuple[CertificateLink, ...]
    random: tuple[Array, list[Array]]
    real: tuple[Array, list[Array]] | None


def check_parity(
    dense: nn.Module,
    onnx_path: Path | str,
    *,
    real_images: Tensor | None,
    random_images: Tensor | None = None,
) -> ParityResult:
    """Compares torch in float64 with ONNX Runtime in float32, on random and on real images.

    Args:
        dense: the network that was exported; left unmodified.
        real_images: (n, c, h, w), normalised as in training; None where there are none, and then
            the certificate says so.
        random_images: (n, c, h, w); None for normally distributed ones, the last one zero.

    Raises:
        ParityError: an error above `ONNX_TOLERANCE` of the largest output, or a value that is not
            finite; the worst place and both values are named.
        BackendUnavailable: ONNX Runtime is not installed.
    """
    # One thread: the certificate must not depend on how many cores the machine has.
    session = open_session(Path(onnx_path).read_bytes(), threads=1)
    shape = [size if isinstance(size, int) else None for size in session.get_inputs()[0].shape]
    reference = float64_copy(dense)
    stage, tolerance = STAGES["fp32"], ONNX_TOLERANCE
    if random_images is None:
        count = shape[0] or count_for_side(RANDOM_IMAGES, shape[-1])
        random = _noise_and_blank(reference, (count, *[size or 1 for size in shape[1:]]))
    else:
        random = (random_images.numpy(), reference_outputs(reference, random_images.numpy()))
    links = [link_of(session, stage, tolerance, "random", *random)]
    real = None
    if real_images is not None:
        pixels = real_images.detach().cpu().float().numpy()
        real = (pixels, reference_outputs(reference, pixels))
        links.append(link_of(session, stage, tolerance, "real", *real))
    return ParityResult(tuple(links), random, real)


def _noise_and_blank(reference: nn.Module, shape: tuple[int, ...]) -> tuple[Array, list[Array]]:
    """Images of noise, of several the last one zero (noise never divides by an epsilon).

    Noise alone where the network itself gives no numbers for zeros.
    """
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(RANDOM_SEED)).numpy()
    images = noise.copy()
    if len(images) > 1:
        images[-1] = 0
    outputs = reference_outputs(reference, images)
    if all(np.isfinite(output[-1]).all() for output in outputs):
        return images, outputs
    return noise, reference_outputs(reference, noise)


def count_for_side(count: int, side: int | None) -> int:
    """`count` for small images, a quarter of it up to LARGE_SIDE, from there on fewer and fewer."""
    if side is None or side <= SMALL_SIDE:
        return count
    shrink = 1 if side <= LARGE_SIDE else (LARGE_SIDE / side) ** 2
    return max(1, int(count // 4 * shrink))


def float64_copy(dense: nn.Module) -> nn.Module:
    """A copy of the network in float64 and evaluation mode, on the CPU."""
    return copy.deepcopy(dense).cpu().double().eval()


@torch.no_grad()
def reference_outputs(network: nn.Module, images: Array) -> list[Array]:
    """All outputs of a float64 network, flattened in the order in which they are exported."""
    parts: list[Sequence[Any]] = [
        _pytree.tree_leaves(network(torch.from_numpy(part).double()))
        for part in split_batch(images, CHUNK)
    ]
    return [torch.cat(pieces).numpy() for pieces in zip(*parts, strict=True)]


def link_of(
    session: Any,
    stage: str,
    tolerance: float,
    inputs: str,
    images: Array,
    reference: list[Array],
) -> CertificateLink:
    """One comparison of a model in ONNX Runtime with the network in float64.

    Args:
        images: as the model takes them.
        tolerance: of the largest output.

    Raises:
        ParityError: the error is larger, or no number.
    """
    outputs = run_session(session, images, chunk=CHUNK)
    comparison = compare_outputs(outputs, reference, scored_output(session))
    if not comparison.max_rel_error <= tolerance:  # True for NaN
        words = describe_failure(stage, AGAINST, inputs, comparison, tolerance)
        exact = stage.startswith(STAGES["fp32"])
        advice = "report this with it" if exact else "choose another precision"
        raise ParityError(f"{words}; the network is not exported, {advice}")
    return CertificateLink(
        stage=stage,
        against=AGAINST,
        inputs=inputs,
        n=len(images),
        tolerance=tolerance,
        max_abs_error=comparison.max_abs_error,
        max_rel_error=comparison.max_rel_error,
        top1_agreement=comparison.top1_agreement,
        passed=True,
    )
