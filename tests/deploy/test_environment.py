"""What the machine says about itself, read from copies of its files."""

import json
import os
from pathlib import Path

import pytest

from polarprune_deploy import environment


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3}, raising=False)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 2), ("150000 100000", 2), ("100000 100000", 1), ("50000 100000", 1), ("", 2)],
)
def test_usable_cpus_are_the_affinity_cut_to_the_quota(
    quota: str, cpus: int, two_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(environment, "CGROUP_QUOTA", file)
    assert environment.usable_cpus() == cpus


def test_stolen_time_is_the_steal_of_our_cpus_and_the_throttling_of_our_group(
    two_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    rows = [f"cpu{n} 1 2 3 4 5 6 7 {n * ticks} 9 10" for n in range(4)]
    (tmp_path / "stat").write_text("\n".join(["cpu  9 9 9 9 9 9 9 999999 9 9", *rows, "intr 5"]))
    (tmp_path / "cpu.stat").write_text("usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n")
    monkeypatch.setattr(environment, "KERNEL_STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(environment, "CGROUP_STATISTICS", tmp_path / "cpu.stat")
    assert environment.stolen_seconds() == pytest.approx(1 + 3 + 2.5)


def test_a_machine_that_says_nothing_has_nothing_stolen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "KERNEL_STATISTICS", tmp_path / "absent")
    monkeypatch.setattr(environment, "CGROUP_STATISTICS", tmp_path / "absent")
    assert environment.stolen_seconds() == 0.0


def test_the_environment_is_strict_json_and_names_versions() -> None:
    described = environment.describe_environment()
    json.dumps(described, allow_nan=False)
    assert described["packages"]["onnxruntime"]
    assert described["cpus"] >= described["usable_cpus"] >= 1
