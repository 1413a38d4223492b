"""The picture of accuracy and MACs over the epochs of a run."""

from collections.abc import Sequence
from typing import Any

from polarprune.figure_words import WORDS
from polarprune.reports.plots import figure_type
from polarprune.runs.run_lines import CutLine, EpochLine

_ACCURACY, _MACS, _SPENT, _GREY = "#1f6f8b", "#4a7c36", "#9a6b1f", "#555555"


def epochs_figure(
    epochs: Sequence[EpochLine], cuts: Sequence[CutLine], headline: str, dense_macs: int
) -> Any:
    """Two panels over the training steps, narrow enough for a phone.

    Args:
        epochs: at least one.
        headline: "top1" or "miou": which figure of the epochs is drawn, with what it was before and
            after each cut.
        dense_macs: of the base network, 100 %.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    figure = figure_type()(figsize=(5.4, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [line.step for line in epochs]
    _draw_accuracy(upper, epochs, cuts, headline)
    shown = [line for line in epochs if line.macs is not None]
    if dense_macs:
        changes = [(0, dense_macs)]
        for cut in cuts:
            changes += [(cut.step, cut.macs_before), (cut.step, cut.macs_after)]
        changes.append((steps[-1], changes[-1][1]))
        lower.plot(
            [step for step, _ in changes], [100 * macs / dense_macs for _, macs in changes],
            color=_MACS, linewidth=1.6, label="one image, of dense",
        )  # fmt: skip
        lower.plot(
            [line.step for line in shown],
            [100 * (line.macs or 0) / dense_macs for line in shown],
            "o", color=_MACS, markersize=4,
        )  # fmt: skip
    spent = [line for line in epochs if line.train_macs_ratio is not None]
    lower.plot(
        [line.step for line in spent], [100 * (line.train_macs_ratio or 0) for line in spent],
        "o--", color=_SPENT, linewidth=1.2, markersize=3, label="spent in training, of dense",
    )  # fmt: skip
    lower.set(xlabel="training step", ylabel="MACs, %", xlim=(0, steps[-1] * 1.02))
    lower.xaxis.get_major_locator().set_params(integer=True)
    top = lower.get_ylim()[1]
    lower.set_ylim(0, max(112, top))
    lower.legend(frameon=False, fontsize=8, loc="lower left")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for cut in cuts:
            axes.axvline(cut.step, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    return figure


def _draw_accuracy(
    axes: Any, epochs: Sequence[EpochLine], cuts: Sequence[CutLine], headline: str
) -> None:
    measured = [(e.step, v) for e in epochs if (v := getattr(e, headline)) is not None]
    axes.plot(
        [step for step, _ in measured], [100 * value for _, value in measured],
        "o-", color=_ACCURACY, linewidth=1.6, markersize=4, label="end of an epoch",
    )  # fmt: skip
    for when, marker in (("before", "v"), ("after", "^")):
        points = [(c.step, v) for c in cuts if (v := getattr(c, f"{headline}_{when}")) is not None]
        if points:
            axes.plot(
                [step for step, _ in points], [100 * value for _, value in points],
                marker, color=_ACCURACY, markersize=6, fillstyle="none", label=f"{when} a cut",
            )  # fmt: skip
    axes.set_ylabel(f"{WORDS[headline]} on the test split, %", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
