"""A plain network written as one ONNX file with a free batch size."""

import copy
import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from polarprune.errors import BackendUnavailable, Refused
from polarprune.manifest import TensorSpec
from polarprune_export.folding import Unfolded, fold_batchnorms
from polarprune_export.onnx_cleaning import name_canonically, simplify, strip_metadata
from polarprune_export.pooling import write_pooling_out

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""Read by ONNX Runtime 1.17+, TensorRT 10.12+, 11 and TensorRT-RTX; the exporter's own default."""

INPUT_NAME = "input"
BATCH_NAME = "batch"
FILE_LIMIT_BYTES = 2**31 - 1
"""A protobuf message cannot be larger."""


@dataclass(frozen=True)
class OnnxReport:
    """What was written. `operators` counts the nodes of each kind."""

    path: Path
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    operators: dict[str, int]
    unfolded: tuple[Unfolded, ...]
    simplified: bool


def write_onnx(
    dense: nn.Module,
    path: Path | str,
    example_input: Tensor,
    *,
    dynamic_batch: bool = True,
    opset: int = OPSET,
) -> OnnxReport:
    """Writes the network, in evaluation mode and float32, as one file.

    The input is named "input", a single output "logits", those of a dict have its names, others
    are "output_0", "output_1", ... Normalisations are folded first, the file holds no path or time,
    and the same network gives the same bytes. Nothing is left at `path` on failure.

    Args:
        dense: what `collapse` returned, or any network that `torch.fx` traces; left unmodified.
        example_input: (n, c, h, w); c, h and w are fixed by it, and n too without dynamic_batch.
        opset: bfloat16 convolutions need 22.

    Raises:
        Refused: the network cannot be exported, or its batch size does not stay free.

    Exactness: rounding, shown by `check_parity`.
    """
    path = Path(path)
    plain, unfolded = _folded_network(dense, example_input)
    example = example_input.detach().cpu().float()
    if dynamic_batch and len(example) < 2:  # a batch of one can be taken for a constant
        example = torch.cat([example, example])
    outputs = _output_names(plain, example)
    model = _export(plain, example, outputs, dynamic_batch, opset)
    parameters = set(plain.state_dict())
    strip_metadata(model)
    name_canonically(model, parameters)
    smaller = _simplified(model)
    if smaller is not None:
        model = smaller
        strip_metadata(model)
        name_canonically(model, parameters)
    model.producer_name, model.producer_version = "polarprune", ""
    _check(model, dynamic_batch, example)
    report = OnnxReport(
        path, 0, (), (), opset, {}, unfolded=tuple(unfolded), simplified=smaller is not None
    )
    return save_model(model, report)


def save_model(model: "onnx.ModelProto", report: OnnxReport) -> OnnxReport:
    """Writes the model at the report's path, whole or not at all, and returns a report of it."""
    content = model.SerializeToString(deterministic=True)
    partial = report.path.with_name(f".{report.path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, report.path)
    finally:
        partial.unlink(missing_ok=True)
    return replace(
        report,
        bytes=len(content),
        inputs=_specs(model.graph.input),
        outputs=_specs(model.graph.output),
        operators=dict(Counter(node.op_type for node in model.graph.node)),
    )


def _folded_network(
    dense: nn.Module, example_input: Tensor
) -> tuple[fx.GraphModule, list[Unfolded]]:
    if isinstance(dense, fx.GraphModule):
        graph_module = copy.deepcopy(dense)
    else:
        from polarprune.lowering import plain_network

        graph_module = plain_network(dense, example_input)
    plain = graph_module.cpu().float().eval()
    example = example_input.detach().cpu().float()
    write_pooling_out(plain, example)
    folded, unfolded = fold_batchnorms(plain, example)
    for tensor in (*folded.parameters(), *folded.buffers()):
        tensor.data = tensor.data.contiguous()  # channels_last weights would be written transposed
    return folded, unfolded


def _output_names(plain: nn.Module, example: Tensor) -> list[str]:
    with torch.no_grad():
        outputs = plain(example)
    leaves = _pytree.tree_leaves(outputs)
    if len(leaves) == 1:
        return ["logits"]
    if isinstance(outputs, dict) and len(outputs) == len(leaves) and INPUT_NAME not in outputs:
        return [str(name) for name in outputs]
    return [f"output_{i}" for i in range(len(leaves))]


def _export(
    plain: fx.GraphModule, example: Tensor, outputs: list[str], dynamic_batch: bool, opset: int
) -> "onnx.ModelProto":
    free = {0: torch.export.Dim(BATCH_NAME, min=1)} if dynamic_batch else {}
    try:
        with warnings.catch_warnings():
            # The exporter warns about its own use of torch's deprecated interfaces.
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                plain,
                (example,),
                input_names=[INPUT_NAME],
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=(free,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (ImportError, ModuleNotFoundError) as error:
        raise BackendUnavailable(
            f"the ONNX exporter cannot be imported ({error}); run: pip install onnx onnxscript"
        ) from None
    except Exception as error:  # the exporter wraps whatever went wrong in its own classes
        cause = error.__cause__ or error
        words = " ".join(str(cause).split())[:300]
        raise Refused(f"the network cannot be exported to ONNX: {words}") from error
    model: onnx.ModelProto = program.model_proto
    return model


def _simplified(model: "onnx.ModelProto") -> "onnx.ModelProto | None":
    try:
        return simplify(model)
    except BackendUnavailable:
        return None  # not shown to be equal, so not kept


def _check(model: "onnx.ModelProto", dynamic_batch: bool, example: Tensor) -> None:
    """Raises Refused unless the model is valid ONNX and its batch size is what was asked for."""
    import onnx

    if model.ByteSize() > FILE_LIMIT_BYTES:
        raise Refused(
            f"the network takes {model.ByteSize()} bytes, one ONNX file holds {FILE_LIMIT_BYTES}"
        )
    onnx.checker.check_model(model, full_check=True)
    wanted = BATCH_NAME if dynamic_batch else len(example)
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        first = dimensions[0] if dimensions else None
        got = None if first is None else (first.dim_param or first.dim_value)
        if got != wanted:
            raise Refused(
                f"the batch size of {value.name!r} became {got!r} in the exported graph instead of "
                f"{wanted!r}: the network computes with it as a number; use sizes such as -1 there"
            )


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    """Name, dtype and shape of graph inputs or outputs; a free dimension is -1."""
    from onnx import helper

    return tuple(
        TensorSpec(
            value.name,
            str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(
                -1 if dimension.dim_param else dimension.dim_value
                for dimension in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    )
