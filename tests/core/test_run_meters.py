"""What is written beside metrics.jsonl: TensorBoard events, and joules where NVML tells them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polarprune.errors import BackendUnavailable
from polarprune.runs.energy import GpuEnergy, gpu_energy
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.tensorboard_events import write_events
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_shows_what_metrics_hold(tmp_path: Path) -> None:
    train(TrainConfig("resnet20", "digits", tmp_path / "run", image_size=8, epochs=2))
    lines = RunFolder(tmp_path / "run").metrics()
    found = _scalars(tmp_path / "run" / "tensorboard")
    for tag, key in (("train/loss", "loss"), ("test/top1", "top1"), ("network/macs", "macs")):
        assert [step for step, _ in found[tag]] == [line["step"] for line in lines]
        assert [v for _, v in found[tag]] == pytest.approx([line[key] for line in lines], rel=1e-6)
    assert "train/joules" not in found, "there is no GPU here"
    assert all(line["joules"] is None for line in lines)


def test_what_a_killed_run_wrote_twice_counts_once(tmp_path: Path) -> None:
    expected = [(10 * epoch, float(epoch)) for epoch in range(1, 12)]
    for step, loss in (*expected[:-1], (110, 0.5), expected[-1]):
        write_events(tmp_path, {"epoch": step // 10, "step": step, "loss": loss})
    assert _scalars(tmp_path / "tensorboard")["train/loss"] == expected


class _Nvml(SimpleNamespace):
    """A GPU that counts, as NVML describes it: millijoules since the driver was loaded."""

    class NVMLError(Exception):
        pass

    def __init__(self, readings: list[int]) -> None:
        super().__init__(readings=iter(readings), asked=[])

    def nvmlInit(self) -> None:  # noqa: N802
        self.asked.append("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return f"handle of {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle of GPU-3f"
        try:
            return next(self.readings)
        except StopIteration:
            raise self.NVMLError from None


def test_joules_are_the_difference_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml([5_000, 7_500, 12_000]))
    meter = GpuEnergy("3f")
    assert [meter.joules(), meter.joules()] == [2.5, 7.0]


def test_a_gpu_that_does_not_count_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml([]))
    with pytest.raises(BackendUnavailable, match="does not tell the energy of GPU 3f"):
        GpuEnergy("3f")


def test_a_cpu_has_no_meter() -> None:
    assert gpu_energy(torch.device("cpu")) is None
