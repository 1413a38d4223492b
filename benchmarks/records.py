"""Records: what each says about where it was made, and how one is read."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

RESULTS = Path(__file__).parent / "results"


def load_record(name: str) -> dict[str, Any]:
    """One record of `benchmarks/results`, by its path there without `.json`."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def describe_machine() -> dict[str, Any]:
    """Processor, cores and versions; no host names, no paths."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    except OSError:
        pass
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "note": "a shared virtual machine; times are noisy",
    }
