"""A float32 graph in int8, with explicit quantisation operators, by ONNX Runtime's own tool.

Weights have a scale a filter, activations one a tensor, both symmetric: the form TensorRT reads.
Activations' scales come from real images; which layers stay in float32 is measured (sensitivity).
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune_export.onnx_session import Array, require_onnxruntime, split_batch

if TYPE_CHECKING:
    import onnx

MATRIX_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# With the additions and pools between layers in int8 too, an engine need not leave it there.
QUANTISED_OPERATORS = (
    *MATRIX_OPERATORS,
    *("Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip"),
)
_ACTIVATIONS = ("Relu", "Clip")
CHUNK = 32


class Quantizer:
    """One network, calibrated on one set of images; quantised as often as is asked for.

    Attributes:
        matrices: names of its convolutions and matrix products.
        choices: names of all that can be left in float32, each with what follows it.
    """

    def __init__(self, model: "onnx.ModelProto", images: Array, folder: Path) -> None:
        """Write the network where ONNX Runtime's tool reads it.

        Args:
            model: float32.
            images: real ones as the network takes them, float32 (n, c, h, w); the largest
                magnitude that a value reaches on them is the largest that int8 has for it.
            folder: scratch, the caller's; what was learned of the images is kept there.

        Raises:
            BackendUnavailable: ONNX Runtime, whose tool this is, is not installed.
        """
        import onnx

        require_onnxruntime()
        self._images, self._name = images, model.graph.input[0].name
        self._layers = [n.name for n in model.graph.node if n.op_type in QUANTISED_OPERATORS]
        self.matrices = [n.name for n in model.graph.node if n.op_type in MATRIX_OPERATORS]
        self._followers = _followers(model)
        behind = {name for names in self._followers.values() for name in names}
        self.choices = [name for name in self._layers if name not in behind]
        self._folder = folder
        onnx.save(model, folder / "float.onnx")

    def quantized(
        self, *, keep: Sequence[str] = (), only: Sequence[str] | None = None
    ) -> "onnx.ModelProto":
        """The same graph with QuantizeLinear and DequantizeLinear around its operators.

        Args:
            keep: names of nodes that stay in float32, and with each the activation behind it.
            only: names of the nodes that do not, likewise; None for all of `QUANTISED_OPERATORS`.
        """
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
        from onnxruntime.quantization.quantize import quantize_static

        images, name = self._images, self._name

        class Images(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left: Iterator[Array] = split_batch(images, CHUNK)

            def get_next(self) -> dict[str, Array] | None:
                part = next(self.left, None)
                return None if part is None else {name: part}

        options: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(quantize_static).parameters:
            options["calibration_cache_path"] = self._folder / "ranges.json"
        keep = self._with_followers(keep)
        if only is not None:
            chosen = self._with_followers(only)
            keep = [layer for layer in self._layers if layer not in chosen]
        with _without_advice():
            quantize_static(
                self._folder / "float.onnx",
                self._folder / "int8.onnx",
                Images(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(keep),
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                },
                **options,
            )
        return onnx.load(self._folder / "int8.onnx")

    def _with_followers(self, names: Sequence[str]) -> list[str]:
        return [*names, *(after for name in names for after in self._followers.get(name, ()))]


def _followers(model: "onnx.ModelProto") -> dict[str, list[str]]:
    """The activations behind each layer; in int8 they would round what it wrote in float32."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in model.graph.node:
        if node.op_type in MATRIX_OPERATORS:
            behind: list[str] = []
            after = readers.get(node.output[0], [])
            while after and all(reader.op_type in _ACTIVATIONS for reader in after):
                behind += [reader.name for reader in after]
                after = [r for reader in after for r in readers.get(reader.output[0], [])]
            found[node.name] = behind
    return found


@contextmanager
def _without_advice() -> Iterator[None]:
    """The tool advises its own preprocessing, through logging's root; our export has done it."""

    def keep(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
