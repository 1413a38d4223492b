"""Two processes under torchrun are one process that sees the same two halves of each batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polarprune.runs.run_folder import RunFolder

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "rank_runs.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _run(command: list[str], out: Path, network: str, *flags: str) -> RunFolder:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), network, *flags],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return RunFolder(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "flags"), [("batch_norm", ["--halves"]), ("group_norm", [])],
    ids=["batch norm, halves", "group norm, whole batch"],
)  # fmt: skip
def test_two_ranks_train_what_one_process_does(
    tmp_path: Path, network: str, flags: list[str]
) -> None:
    two = _run(TORCHRUN, tmp_path / "two", network)
    one = _run([sys.executable], tmp_path / "one", network, *flags)
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
    import rank_runs

    torch.manual_seed(0)
    return dict(getattr(rank_runs, network)().named_parameters())


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from polarprune.runs.train_config import TrainConfig;"
        "from polarprune.runs.training import train; from polarprune.errors import ConfigError\n"
        "try: train(TrainConfig(model='resnet20', data='digits', out=Path('OUT'), batch_size=33))\n"
        "except ConfigError as error: print(error)"
    )
    script = tmp_path / "odd.py"
    script.write_text(code.replace("OUT", str(tmp_path / "run")))
    done = subprocess.run(
        [*TORCHRUN, str(script)], capture_output=True, text=True, timeout=200, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "--batch-size 33 is no multiple of the 2 processes" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["consensus", "mask-predictor"])
def test_a_foreign_loop_under_ddp_is_cut_alike_on_both_ranks(method: str) -> None:
    done = subprocess.run(
        [*TORCHRUN, str(TESTS / "ddp_loop.py"), method], capture_output=True, text=True,
        timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first == second
    assert float(first[0]) < 1, "nothing was cut"
