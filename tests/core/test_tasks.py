"""Tasks: losses and figures against plain loops, and outputs that do not fit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polarprune.errors import ConfigError
from polarprune.figure_words import cut_figures, sentence, task_figures
from polarprune.tasks import build_task
from polarprune.tasks.segmentation import IGNORED, dice_loss


def _drawn(seed: int, classes: int, ignored: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, classes, 5, 4, generator=generator)
    labels = torch.randint(0, classes, (2, 5, 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORED
    return scores, labels


drawn = st.tuples(st.integers(0, 9999), st.integers(2, 4), st.sampled_from([0.0, 0.3]))


def _by_loops(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Every pixel looked at on its own."""
    classes = scores.shape[1]
    truth, predicted = labels.flatten().tolist(), scores.argmax(1).flatten().tolist()
    pairs = [(t, p) for t, p in zip(truth, predicted, strict=True) if t != IGNORED]
    ious, dices = [], []
    for c in range(classes):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        if either:
            ious.append(both / either)
            dices.append(2 * both / (either + both))
    return {"miou": float(np.mean(ious)), "dice": float(np.mean(dices))}


@given(drawn)
@settings(max_examples=30)
def test_miou_and_dice_are_those_of_all_pixels_one_by_one(case: tuple[int, int, float]) -> None:
    scores, labels = _drawn(*case)
    tally = build_task("segmentation").tally()
    for one in range(2):  # in two batches
        tally.add({"out": scores[one : one + 1]}, labels[one : one + 1])
    expected = _by_loops(scores, labels)
    assert tally.figures() == pytest.approx(expected)


@given(drawn)
@settings(max_examples=30)
def test_the_dice_loss_is_its_formula(case: tuple[int, int, float]) -> None:
    scores, labels = _drawn(*case)
    p = scores.softmax(1)
    found = []
    for c in range(scores.shape[1]):
        both = total = 0.0
        for n, y, x in np.ndindex(*labels.shape):
            if labels[n, y, x] != IGNORED:
                truth = float(labels[n, y, x] == c)
                both += float(p[n, c, y, x]) * truth
                total += float(p[n, c, y, x]) + truth
        found.append((2 * both + 1) / (total + 1))
    assert float(dice_loss(scores, labels)) == pytest.approx(1 - np.mean(found), abs=1e-5)


def test_a_perfect_segmentation_has_no_loss_and_full_figures() -> None:
    _, labels = _drawn(0, 3, 0.2)
    known = labels.masked_fill(labels == IGNORED, 0)
    scores = 100.0 * F.one_hot(known, 3).movedim(-1, 1)
    task = build_task("segmentation")
    assert float(task.loss(scores, labels)) == pytest.approx(0, abs=1e-5)
    tally = task.tally()
    tally.add(scores, labels)
    assert tally.figures() == {"miou": 1.0, "dice": 1.0}


def test_pixels_of_no_class_give_no_figures() -> None:
    tally = build_task("segmentation").tally()
    tally.add(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), IGNORED))
    assert tally.figures() == {"miou": 0.0, "dice": 0.0}


def test_an_auxiliary_head_counts_half() -> None:
    scores, labels = _drawn(1, 3, 0.0)
    other, _ = _drawn(2, 3, 0.0)
    task = build_task("segmentation")
    both = task.loss({"out": scores, "aux": other}, labels)
    assert float(both) == pytest.approx(
        float(task.loss(scores, labels) + 0.5 * task.loss(other, labels))
    )


def test_a_batch_without_a_labelled_pixel_has_a_finite_loss() -> None:
    scores = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = build_task("segmentation").loss(scores, torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(scores.grad.isfinite().all())


def test_top1_and_its_loss_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, generator=generator)
    labels = torch.randint(0, 4, (6,), generator=generator)
    task = build_task("classification", 0.1)
    assert torch.equal(
        task.loss(scores, labels), F.cross_entropy(scores, labels, label_smoothing=0.1)
    )
    tally = task.tally()
    tally.add(scores[:4], labels[:4])
    tally.add(scores[4:], labels[4:])
    assert tally.figures() == {"top1": int((scores.argmax(1) == labels).sum()) / 6}


UNFIT = {
    "a segmentation network as a classifier": (
        "classification", torch.zeros(2, 3, 8, 8), "train it with --task segmentation"
    ),
    "another class count": ("classification", torch.zeros(2, 5), "a classifier gives (2, 3)"),
    "no tensor": ("classification", {"boxes": "none"}, "gives a str for 2 images"),
    "a classifier as a segmentation network": (
        "segmentation", torch.zeros(2, 3), "needs one score a class and pixel"
    ),
    "a coarse map": ("segmentation", torch.zeros(2, 3, 4, 4), "(2, 3, 8, 8)"),
    "nothing at all": ("segmentation", {}, "gives a NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_outputs_that_do_not_fit_are_one_line(case: str) -> None:
    name, outputs, message = UNFIT[case]
    with pytest.raises(ConfigError) as raised:
        build_task(name).check(outputs, 3, (2, 3, 8, 8))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="--task must be one of class"):
        build_task("detection")


def test_figures_are_called_by_their_names() -> None:
    figures = {"miou": 0.5, "dice": 0.75, "pixel_agreement": 1.0, "macs": 12.0}
    assert sentence(task_figures(figures)) == "mIoU 50.00 %, Dice 75.00 %"
    assert sentence(cut_figures(figures)) == "Agreement of the pixels 100.00 %"
    assert sentence(task_figures({"top1": 0.5, "miou": None})) == "Top-1 50.00 %"
    assert task_figures({"top1": None}) == ""
