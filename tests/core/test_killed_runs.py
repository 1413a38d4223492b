"""Kill -9 at random moments: the run that goes on is, bit for bit, the one that was not killed."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polarprune.onepass import OnePass
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train

KILLS = 10
EPOCHS, STEPS_AN_EPOCH = 5, 22
ALL_STEPS = EPOCHS * STEPS_AN_EPOCH
MOST_A_LIFE = ALL_STEPS // (KILLS + 1)  # so that all kills find it at work
SLACK = 4  # steps that a life may do while it is waiting to be killed
_VARY = ("seconds", "images_per_s")


def _train(out: str, resume: bool, steps: Any, furthest: Any) -> None:
    torch.set_num_threads(1)
    whole = OnePass.step

    def counted(one: OnePass) -> object:
        while one.steps >= furthest.value:  # far enough for this life
            time.sleep(0.001)
        steps.value = one.steps + 1
        return whole(one)

    OnePass.step = counted  # type: ignore[method-assign]
    train(
        TrainConfig(
            model="digit_runs:resnet8", data="digits", out=Path(out), image_size=8, epochs=EPOCHS,
            batch_size=64, resume=resume, checkpoint_every=3,
        )
    )  # fmt: skip


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["polarprune.runs.training"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Without locks: a killed process would take one along.
    steps = context.Value("i", 0, lock=False)
    furthest = context.Value("i", ALL_STEPS, lock=False)

    def life(out: Path) -> multiprocessing.Process:
        resume = (out / "run.json").exists()
        process = context.Process(target=_train, args=(str(out), resume, steps, furthest))
        process.start()
        return process

    unbroken = life(whole)
    unbroken.join()
    assert unbroken.exitcode == 0
    assert steps.value == ALL_STEPS
    rng = random.Random(0)
    steps.value = 0
    moments = []
    for _ in range(KILLS):
        # Some steps on, and somewhere between two of them; at the same step: while it starts.
        until = steps.value + rng.randint(0, MOST_A_LIFE - SLACK)
        furthest.value = until + SLACK
        process = life(broken)
        while steps.value < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3 if steps.value == until else 0.05))
        assert process.exitcode is None, "it ended before it was killed"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        moments.append(steps.value)
    assert len(set(moments)) > KILLS // 2, "hardly any progress between the kills"
    furthest.value = ALL_STEPS
    last = life(broken)
    last.join()
    assert last.exitcode == 0
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
