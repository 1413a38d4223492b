"""The file that is shipped: the checked float32 graph in its precision, with pixels in if asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polarprune.manifest import CertificateLink, Preprocessing
from polarprune_export.onnx_cleaning import name_canonically, strip_metadata
from polarprune_export.onnx_session import Array, open_session
from polarprune_export.onnx_writer import BATCH_NAME, OnnxReport, save_model
from polarprune_export.parity import link_of
from polarprune_export.precisions import (
    STAGES,
    TOLERANCES,
    Lowered,
    Progress,
    Samples,
    lower_precision,
    runnable,
)
from polarprune_export.preprocess_embedding import embed_preprocessing
from polarprune_export.probes import Probe

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ShippedModel:
    """What was made of the float32 file. `runs_here` is what this machine's CPU computes of it."""

    report: OnnxReport
    runs_here: bytes
    kept: tuple[str, ...]
    why: str | None
    links: tuple[CertificateLink, ...]


def ship_model(
    report: OnnxReport,
    precision: str,
    embed: Preprocessing | None,
    batch: int | None,
    samples: Callable[[], Samples],
    probes: Sequence[Probe],
    progress: Progress | None,
) -> ShippedModel:
    """Replaces the float32 file, and compares what takes its place with the network in float64.

    Args:
        report: of the float32 file, which has been checked.
        embed: preprocessing to put into the graph, or None.
        batch: the one batch size that the file shall take, or None for any.
        samples: draws what the precision is chosen by, where there is a choice.
        probes: an int8 network is compared on the real ones alone: its scales are those of images.

    Raises:
        ConfigError, Refused: the precision or the preprocessing does not suit the network.
        ParityError: an output is further off than the precision explains.
    """
    import onnx

    if precision == "fp32" and embed is None and batch is None:
        return ShippedModel(report, report.path.read_bytes(), (), None, ())
    model = onnx.load(str(report.path))
    lowered = Lowered(model, (), None)
    if precision != "fp32":
        lowered = lower_precision(model, precision, samples(), progress)
    model = lowered.model
    if embed is not None:
        embed_preprocessing(model, embed)
    if batch is not None:
        _fix_batch(model, batch)
    strip_metadata(model)
    name_canonically(model, {tensor.name for tensor in model.graph.initializer})
    model.producer_name, model.producer_version = "polarprune", ""
    onnx.checker.check_model(model, full_check=True)
    content = runnable(model, precision)
    session = open_session(content, threads=1)
    stage = STAGES[precision] + ("" if embed is None else ", pixels in")
    stage += "" if batch is None else f", batches of {batch}"
    links = tuple(
        link_of(
            session,
            stage,
            TOLERANCES[precision],
            probe.kind,
            probe.images if embed is None else _pixels(probe),
            probe.reference,
        )
        for probe in probes
        if precision != "int8" or probe.kind == "real"
    )
    shipped = save_model(model, report)
    return ShippedModel(shipped, content, lowered.kept, lowered.why, links)


def _fix_batch(model: "onnx.ModelProto", batch: int) -> None:
    """In place; shape inference then finds the sizes inside. No operator reads the size."""
    graph = model.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        size = value.type.tensor_type.shape.dim[0]
        if size.dim_param == BATCH_NAME:
            size.dim_value = batch


def _pixels(probe: Probe) -> Array:
    assert probe.pixels is not None, "whoever embeds preprocessing compares pixels"
    return np.ascontiguousarray(probe.pixels)
