"""Kill -9 at random moments: the run that goes on is, bit for bit, the one that was not killed."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polarprune.run_folder import RunFolder
from polarprune.train_config import TrainConfig
from polarprune.training import train

KILLS = 10
_VARY = ("seconds", "images_per_s")


def _train(out: str, resume: bool) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(
        model="resnet20", data="digits", out=Path(out), image_size=8, epochs=5, batch_size=64,
        resume=resume, checkpoint_every=3,
    )  # fmt: skip
    train(config)


def _seconds_of(process: multiprocessing.Process) -> float:
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["polarprune.training"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _seconds_of(context.Process(target=time.monotonic))  # the server has imported torch by then
    seconds = _seconds_of(context.Process(target=_train, args=(str(whole), False)))
    rng = random.Random(0)
    killed = 0
    for life in range(100):
        resume = (broken / "run.json").exists()
        process = context.Process(target=_train, args=(str(broken), resume))
        process.start()
        if killed < KILLS:
            process.join(rng.uniform(0.05, 0.3) * seconds)
        else:
            process.join()
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        elif process.exitcode == 0 and killed >= KILLS:
            break
        else:
            assert process.exitcode == 0, f"life {life} failed"
            assert killed >= KILLS, "it finished too early for ten kills"
    assert killed == KILLS
    ours = load_file(broken / "pruned" / "weights.safetensors")
    theirs = load_file(whole / "pruned" / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("cuts.jsonl", "openness.jsonl"):
        assert (broken / name).read_text() == (whole / name).read_text()
    assert _without_times(broken) == _without_times(whole)
    assert _result(broken) == _result(whole)


def _without_times(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _VARY} for line in lines]


def _result(run: Path) -> dict:
    result = RunFolder(run).result
    return {key: value for key, value in result.items() if key not in ("run", "seconds")}
