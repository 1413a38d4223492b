"""A teacher: what it is shown, what it adds to the loss and to the bill, whom it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polarprune.datasets import load_dataset
from polarprune.errors import ConfigError, RunFolderError
from polarprune.runs.distillation import Teacher, distilled
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(TrainConfig("digit_runs:resnet8", "digits", out, target=1.0, image_size=8, epochs=1))
    return out


def test_the_loss_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    student, wanted = rng.normal(size=(2, 5, 3))
    p, q = (np.exp(z / 4) / np.exp(z / 4).sum(1, keepdims=True) for z in (wanted, student))
    expected = 0.5 * 1.25 + 0.5 * 16 * (p * np.log(p / q)).sum(1).mean()
    got = distilled(torch.tensor(1.25), torch.from_numpy(student), torch.from_numpy(wanted))
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_a_teacher_sees_images_as_it_was_trained_on_them(teacher: Path) -> None:
    own = load_dataset("digits", image_size=8)
    other = load_dataset("digits", image_size=8, mean_std=((0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))
    logits = [
        Teacher(teacher, data, 10, CPU).logits(
            next(data.test.batches(16, shuffle_seed=None, augment=False))[0]
        )
        for data in (own, other)
    ]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_teacher_is_learned_from_and_paid_for(teacher: Path, tmp_path: Path) -> None:
    base = TrainConfig("digit_runs:resnet8", "digits", tmp_path / "a", image_size=8, epochs=2)
    alone, taught = train(base), train(replace(base, out=tmp_path / "b", teacher=teacher))
    assert taught.train_macs_ratio == pytest.approx(alone.train_macs_ratio + 1 / 3, abs=0.02)
    losses = [RunFolder(tmp_path / name).metrics()[0]["loss"] for name in "ab"]
    assert losses[0] != losses[1]


def test_a_teacher_of_other_images_is_refused(teacher: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        "digit_runs:resnet8", "digits", tmp_path / "run", epochs=1, teacher=teacher
    )
    with pytest.raises(ConfigError, match="was trained on images of 8 pixels, not 32"):
        train(replace(config, image_size=32))
    with pytest.raises(RunFolderError, match=r"holds no run\.json"):
        train(replace(config, teacher=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
