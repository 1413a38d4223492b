"""A side's network loaded in one way of running: torch in several modes, or ONNX Runtime."""

from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.latency_cells import Cell
from benchmarks.gpu.uniform_networks import Side
from polarprune.errors import BackendUnavailable
from polarprune_deploy.backends.runners import Runner


def load_sides(
    sides: dict[str, Side], cell: Cell, device: str, image_size: int, stack: ExitStack
) -> list[Runner]:
    """Runners in the order of the sides; the stack closes them.

    Raises:
        BackendUnavailable: this machine's ONNX Runtime does not run this device or precision.
    """
    if cell.mode != "onnxruntime":
        from polarprune_deploy.backends.runner_torch import TorchRunner

        return [
            stack.enter_context(
                closing(
                    TorchRunner(
                        side.network, (3, image_size, image_size), name=f"{cell.network}, {name}",
                        device=device, mode=cell.mode, precision=cell.precision,
                        threads=torch.get_num_threads() if device == "cpu" else None,
                    )
                )
            )
            for name, side in sides.items()
        ]  # fmt: skip
    check_onnxruntime(cell, device)
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="polarprune-gpu-")))
    return [
        stack.enter_context(closing(_in_onnxruntime(name, side, cell, device, image_size, folder)))
        for name, side in sides.items()
    ]


def check_onnxruntime(cell: Cell, device: str) -> None:
    """Before anything is exported.

    Raises:
        BackendUnavailable: it is not here, or has no such provider or precision.
    """
    from polarprune_deploy.backends.runner_onnxruntime import PROVIDERS

    try:
        import onnxruntime
    except ImportError:
        raise BackendUnavailable("onnxruntime is not installed here") from None
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise BackendUnavailable(f"this onnxruntime has no {PROVIDERS[device]}")
    if cell.precision == "bf16":
        raise BackendUnavailable("onnxruntime has no bf16 form of many operators")


def _in_onnxruntime(
    name: str, side: Side, cell: Cell, device: str, image_size: int, folder: Path
) -> Runner:
    import onnx

    from polarprune_deploy.backends.loading import load_runner
    from polarprune_export import write_onnx
    from polarprune_export.half_precision import OPSETS, lower_to_half

    file = folder / f"{name.replace(' ', '-')}.onnx"
    example = torch.zeros(1, 3, image_size, image_size)
    if cell.precision == "fp32":
        write_onnx(side.network, file, example)
    else:
        write_onnx(side.network, file, example, opset=OPSETS[cell.precision])
        model = onnx.load(file)
        lower_to_half(model, cell.precision)
        onnx.save(model, file)
    return load_runner(file, "onnxruntime", device, name=f"{cell.network}, {name}")
