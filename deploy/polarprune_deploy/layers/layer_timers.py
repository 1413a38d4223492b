"""What a latency table is measured with: who times single layers, and loads whole networks alike.

ONNX Runtime on a CPU, torch on a GPU (and on a CPU, for a rehearsal of that).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from polarprune.errors import ConfigError
from polarprune.option_values import check_choice, refuse_given
from polarprune_deploy.backends.loading import How, check_how
from polarprune_deploy.backends.runners import Runner
from polarprune_deploy.environment import usable_cpus
from polarprune_deploy.layers.layer_requests import LayerRequest, Progress

if TYPE_CHECKING:
    from torch import nn

BACKENDS = ("auto", "onnxruntime", "torch")


class LayerTimer(Protocol):
    """One backend on one device in one precision."""

    @property
    def head(self) -> Mapping[str, str | int | None]:
        """What the table says about it: backend, device, precision, threads, and its settings."""
        ...

    def time_layers(
        self, requests: Sequence[LayerRequest], *, batch: int, seed: int, progress: Progress
    ) -> list[float]:
        """Milliseconds of one run of each layer, `batch` images in it."""
        ...

    def load(
        self, network: "nn.Module", image_shape: tuple[int, ...], name: str, folder: Path
    ) -> Runner:
        """A whole network, run as its layers were; what must be written goes to `folder`."""
        ...


@dataclass(frozen=True)
class OnnxRuntimeTimer:
    """The exported layers and networks on the CPU in float32."""

    threads: int

    @property
    def head(self) -> dict[str, str | int | None]:
        """Of the table."""
        return {
            "backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": self.threads
        }  # fmt: skip

    def time_layers(
        self, requests: Sequence[LayerRequest], *, batch: int, seed: int, progress: Progress
    ) -> list[float]:
        """From ONNX Runtime's own profile of a graph of many layers."""
        from polarprune_deploy.layers.layer_ladder import time_layers

        return time_layers(
            requests, batch=batch, threads=self.threads, seed=seed, progress=progress
        )

    def load(
        self, network: "nn.Module", image_shape: tuple[int, ...], name: str, folder: Path
    ) -> Runner:
        """Exported first."""
        import torch

        from polarprune_deploy.backends.loading import load_runner
        from polarprune_export import write_onnx

        file = folder / f"{name}.onnx"
        write_onnx(network, file, torch.zeros(1, *image_shape))
        return load_runner(file, threads=self.threads)


@dataclass(frozen=True)
class TorchTimer:
    """Layers and networks in torch: captured graphs on a GPU, plain calls on a CPU.

    `threads` are the whole process's; None on a GPU.
    """

    device: str
    precision: str
    threads: int | None = None

    @property
    def head(self) -> dict[str, str | int | None]:
        """Of the table; on a GPU with its name, and with how cuDNN chose its kernels."""
        import torch

        gpu: dict[str, str | int | None] = {}
        if self.device == "cuda":
            gpu = {"gpu": torch.cuda.get_device_name(), "cudnn": "kernels by heuristic"}
        return {
            "backend": "torch", "device": self.device, "precision": self.precision,
            "threads": self.threads, "mode": self._mode, "layout": "channels_last", **gpu,
        }  # fmt: skip

    @property
    def _mode(self) -> str:
        return "graph" if self.device == "cuda" else "eager"

    def time_layers(
        self, requests: Sequence[LayerRequest], *, batch: int, seed: int, progress: Progress
    ) -> list[float]:
        """By replaying each."""
        import torch

        from polarprune_deploy.layers.layer_replay import time_replayed

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return time_replayed(
            requests, device=self.device, precision=self.precision, batch=batch, seed=seed,
            progress=progress,
        )  # fmt: skip

    def load(
        self, network: "nn.Module", image_shape: tuple[int, ...], name: str, folder: Path
    ) -> Runner:
        """As it is: batch norms are not folded."""
        from polarprune_deploy.backends.runner_torch import TorchRunner

        return TorchRunner(
            network, image_shape, name=name, device=self.device, mode=self._mode,
            precision=self.precision, threads=self.threads,
        )  # fmt: skip


def choose_timer(
    backend: str, device: str, precision: str | None = None, threads: int | None = None
) -> LayerTimer:
    """The timer of these options.

    Args:
        backend: "auto" is ONNX Runtime on a CPU and torch on a GPU.
        precision: of torch alone; None is fp16 on a GPU and fp32 on a CPU.
        threads: of a CPU; None takes every CPU the process may use.

    Raises:
        ConfigError: a word out of range, or words that do not go together.
        BackendUnavailable: no GPU is here.
    """
    check_choice("--backend", backend, BACKENDS)
    if backend == "auto":
        backend = "torch" if device == "cuda" else "onnxruntime"
    if backend == "onnxruntime" and device == "cuda":
        raise ConfigError(
            "--backend onnxruntime times layers on the CPU only; with --device cuda give "
            "--backend torch"
        )
    if backend == "onnxruntime" and precision not in (None, "fp32"):
        raise ConfigError(
            f"--precision {precision} is for --backend torch; layers are timed in onnxruntime in "
            "fp32 only"
        )
    if device == "cuda":
        refuse_given({"--threads": threads}, "is for --device cpu")
    check_how(How(backend, device, threads, precision=None if backend != "torch" else precision))
    if backend == "onnxruntime":
        return OnnxRuntimeTimer(threads or usable_cpus())
    if device == "cuda":
        return TorchTimer(device, precision or "fp16")
    return TorchTimer(device, precision or "fp32", threads or usable_cpus())
