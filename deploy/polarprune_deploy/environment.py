"""What a latency was measured on, and how much of the machine others took meanwhile."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

CGROUP_STATISTICS = Path("/sys/fs/cgroup/cpu.stat")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
KERNEL_STATISTICS = Path("/proc/stat")

RECORDED_PACKAGES = (
    "polarprune", "onnxruntime", "onnxruntime-gpu", "numpy", "onnx", "torch", "tensorrt",
    "tensorrt-rtx", "nvidia-ml-py",
)  # fmt: skip


def usable_cpus() -> int:
    """CPUs this process may really use: its affinity, and the container's quota rounded up."""
    count = len(_affinity())
    quota, _, period = _first_line(CGROUP_QUOTA).partition(" ")
    if quota.isdigit() and period.isdigit():
        count = min(count, -(-int(quota) // int(period)))
    return max(count, 1)


def stolen_seconds() -> float:
    """CPU seconds taken from us so far: by the hypervisor, or by the container's CPU quota.

    Zero where the system does not say; only the difference of two calls means anything.
    """
    seconds = 0.0
    ours = {f"cpu{number}" for number in _affinity()}
    for line in _text(KERNEL_STATISTICS).splitlines():
        fields = line.split()
        if len(fields) > 8 and fields[0] in ours:
            # cpuN user nice system idle iowait irq softirq steal
            seconds += int(fields[8]) / os.sysconf("SC_CLK_TCK")
    for line in _text(CGROUP_STATISTICS).splitlines():
        key, _, value = line.partition(" ")
        if key == "throttled_usec":
            seconds += int(value) / 1e6
    return seconds


def describe_environment() -> dict[str, object]:
    """Machine, versions and load, for the head of a record. Unknown entries are None."""
    return {
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "git": _git_revision(),
        "cpu": _cpu_field("model name") or platform.processor() or None,
        "cpu_mhz": _cpu_field("cpu MHz"),
        "cpu_governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
        or None,
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "gpu": _gpu(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _gpu() -> dict[str, object] | None:
    """The GPU that torch uses, if it was imported to use one; its state is each comparison's."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "capability": f"{properties.major}.{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the working copy that tracks this file; None for an installed package."""
    here = Path(__file__)
    answer = ""
    # The first command keeps a package installed below somebody else's repository from naming it.
    for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
        try:
            answer = subprocess.run(
                ["git", *command],
                cwd=here.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    return answer.strip()


def _cpu_field(name: str) -> str | None:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
