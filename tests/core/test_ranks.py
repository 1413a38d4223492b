"""Two processes under torchrun are one process that sees the same two halves of each batch."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import rank_runs
import torch
from safetensors.torch import load_file

from polarprune.runs.run_folder import RunFolder


@dataclass(frozen=True)
class TwoRanks:
    """The folder with the runs of two ranks, and what they printed."""

    out: Path
    said: str


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            rank_runs.__file__, str(out),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return TwoRanks(out, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "halves"), [("batch_norm", True), ("group_norm", False)],
    ids=["batch norm, halves", "group norm, whole batch"],
)  # fmt: skip
def test_two_ranks_train_what_one_process_does(
    both: TwoRanks, tmp_path: Path, network: str, halves: bool
) -> None:
    two = RunFolder(both.out / network)
    with rank_runs.in_halves() if halves else nullcontext():
        rank_runs.run(tmp_path / "one", network)
    one = RunFolder(tmp_path / "one")
    for line, expected in zip(two.cuts(), one.cuts(), strict=True):
        assert line["step"] == expected["step"]
        assert line["sites"] == expected["sites"]
        assert line["macs_after"] == expected["macs_after"]
    assert two.cuts(), "nothing was cut, so nothing was agreed on"
    for line, expected in zip(two.metrics(), one.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    for line, expected in zip(two.openness(), one.openness(), strict=True):
        for site, opened in expected["open"].items():
            assert line["open"][site] == pytest.approx(opened, abs=0.002), site
    got = load_file(two.path / "pruned" / "weights.safetensors")
    expected = load_file(one.path / "pruned" / "weights.safetensors")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).abs().max()
        assert error <= 2e-3 * max(1.0, float(value.abs().max())), name
    start = _initial(network)
    assert any(
        not torch.allclose(start[n], v, atol=0.02) for n, v in got.items()
        if n in start and v.shape == start[n].shape
    ), "hardly anything was learned, so agreement says little"  # fmt: skip


def _initial(network: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(getattr(rank_runs, network)().named_parameters())


def test_a_batch_that_ranks_cannot_share_is_refused(both: TwoRanks) -> None:
    assert "--batch-size 33 is no multiple of the 2 processes" in both.said
    assert not (both.out / "odd").exists()


@pytest.mark.parametrize("method", rank_runs.METHODS)
def test_a_foreign_loop_under_ddp_is_cut_alike_on_both_ranks(both: TwoRanks, method: str) -> None:
    said = [line.split() for line in both.said.splitlines()]
    first, second = (figures for name, *figures in said if name == method)
    assert first == second
    assert float(first[0]) < 1, "nothing was cut"
