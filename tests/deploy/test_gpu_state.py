"""NVML's answers in our words, from a module that only pretends to be NVML."""

import sys
import types
from typing import Any

import pytest

from polarprune_deploy.gpu_state import GpuMonitor, gpu_monitor

UUID = "1234-abcd"


class NVMLError(Exception):
    """As in pynvml: the base of all its errors."""


def refuse(*arguments: object) -> object:
    raise NVMLError("Not Supported")


@pytest.fixture
def nvml() -> Any:
    """The names that pynvml documents, for one GPU; anything else is an AttributeError."""
    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    module.nvmlInit = lambda: None
    module.handles = []
    module.nvmlDeviceGetHandleByUUID = lambda uuid: module.handles.append(uuid) or "handle"
    module.nvmlDeviceGetName = lambda handle: b"A card"
    module.nvmlSystemGetDriverVersion = lambda: "580.1"
    module.nvmlDeviceGetClockInfo = lambda handle, kind: {1: 1980, 2: 2619}[kind]
    module.nvmlDeviceGetTemperature = lambda handle, sensor: 41
    module.nvmlDeviceGetPowerUsage = lambda handle: 123_456
    module.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0
    module.nvmlDeviceGetComputeRunningProcesses = lambda handle: [
        types.SimpleNamespace(pid=7),
        types.SimpleNamespace(pid=3),
    ]
    return module


def test_a_look_has_units_and_the_card_is_found_by_its_uuid(nvml: Any) -> None:
    monitor = GpuMonitor(nvml, UUID)
    assert nvml.handles == ["GPU-1234-abcd"]
    state = monitor.look()
    assert (state.sm_mhz, state.memory_mhz, state.temperature_c) == (1980, 2619, 41)
    assert state.power_w == pytest.approx(123.456)
    assert state.reasons == ()
    report = monitor.report(state, [state, state])
    assert (report.name, report.driver, report.processes) == ("A card", "580.1", (3, 7))
    assert report.throttled() is None


@pytest.mark.parametrize(
    ("bits", "words", "throttled"),
    [
        (0x1, ("idle",), False),
        (0x2, ("application clocks",), False),
        (0x4, ("power cap",), True),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown"), True),
        (0x1 | 0x20, ("idle", "software thermal slowdown"), True),
        (0x80, ("power brake",), True),
    ],
)
def test_reasons_are_named_and_all_but_two_speak_against_the_rounds(
    nvml: Any, bits: int, words: tuple[str, ...], throttled: bool
) -> None:
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: bits
    monitor = GpuMonitor(nvml, UUID)
    state = monitor.look()
    assert state.reasons == words
    assert (monitor.report(state, [state]).throttled() is not None) is throttled


def test_reasons_have_an_older_name(nvml: Any) -> None:
    del nvml.nvmlDeviceGetCurrentClocksEventReasons
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4
    assert GpuMonitor(nvml, UUID).look().reasons == ("power cap",)


def test_what_a_card_does_not_tell_is_none(nvml: Any) -> None:
    nvml.nvmlDeviceGetPowerUsage = nvml.nvmlDeviceGetClockInfo = refuse
    nvml.nvmlDeviceGetComputeRunningProcesses = refuse
    monitor = GpuMonitor(nvml, UUID)
    state = monitor.look()
    assert (state.power_w, state.sm_mhz, state.memory_mhz) == (None, None, None)
    report = monitor.report(state, [state])
    assert report.processes == ()
    assert report.throttled() is None


def test_nothing_is_ever_set(nvml: Any) -> None:
    asked: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(nvml, name)

    monitor = GpuMonitor(Recorder(), UUID)
    monitor.report(monitor.look(), [])
    assert asked
    assert not [name for name in asked if "Set" in name or "Reset" in name]


def test_there_is_no_monitor_on_a_cpu_or_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_monitor("cpu") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_monitor("cuda") is None


def test_the_monitor_is_that_of_torchs_gpu(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: types.SimpleNamespace(uuid=f"u{index}")
    )
    assert gpu_monitor("cuda") is not None
    assert nvml.handles == ["GPU-u1"]
    nvml.nvmlInit = refuse
    assert gpu_monitor("cuda") is None
