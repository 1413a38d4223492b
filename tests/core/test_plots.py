"""The pictures are drawn, whole, and say no when they cannot be."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from polarprune.errors import BackendUnavailable, RunFolderError
from polarprune.reports.plots import draw_channels, draw_gates
from polarprune.runs.run_folder import RunFolder

PICTURES = pytest.mark.parametrize("draw", [draw_gates, draw_channels])
Draw = Callable[[RunFolder, Path], None]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


@PICTURES
def test_a_picture_is_written_whole_and_alone(draw: Draw, pruned_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "plots" / "picture.png"
    draw(RunFolder(pruned_run), path)
    with Image.open(path) as image:
        image.verify()
        assert min(image.size) > 400
    assert list(path.parent.iterdir()) == [path]


def test_every_gate_has_a_line_and_every_removed_block_a_cross(
    pruned_run: Path, tmp_path: Path, figures: list[Figure]
) -> None:
    draw_gates(RunFolder(pruned_run), tmp_path / "gates.png")
    blocks, names, channels, _ = figures[0].axes
    curves = [line for line in blocks.lines if len(line.get_xdata()) > 2]
    assert len(curves) == 9
    crosses = [line for line in blocks.lines if line.get_marker() == "X"]
    assert [(float(c.get_xdata()[0]), float(c.get_ydata()[0])) for c in crosses] == [(40, 0)] * 3
    assert sum(len(lines.get_segments()) for lines in channels.collections) == 400
    assert [text.get_text() for text in names.texts][:2] == ["layer1.0  kept", "layer1.1  removed"]
    assert [text.get_text() for text in blocks.texts] == ["warm-up", "search", "settled"]


def test_bars_are_the_channels_before_and_after(
    pruned_run: Path, tmp_path: Path, figures: list[Figure]
) -> None:
    draw_channels(RunFolder(pruned_run), tmp_path / "channels.png")
    before, after = figures[0].axes[0].containers
    assert [bar.get_height() for bar in before][:4] == [16, 16, 16, 16]
    # The stem keeps 10 of 16, so does conv1 of the first block; the second block is removed.
    assert [bar.get_height() for bar in after][:5] == [10, 10, 10, 0, 0]


@pytest.mark.slow
def test_no_label_overlaps_another_with_27_blocks(
    make_pruned_run: Callable[..., Path], tmp_path: Path, figures: list[Figure]
) -> None:
    run = RunFolder(make_pruned_run(tmp_path / "run", "resnet56"))
    draw_gates(run, tmp_path / "gates.png")
    draw_channels(run, tmp_path / "channels.png")
    for figure in figures:
        for axes in figure.axes:
            texts = [t for t in [*axes.texts, *axes.get_xticklabels()] if t.get_text()]
            boxes = [text.get_window_extent() for text in texts]
            for place, box in enumerate(boxes):
                for other in boxes[place + 1 :]:
                    assert not box.overlaps(other)


@PICTURES
def test_a_run_that_is_not_finished_has_no_picture(
    draw: Draw, pruned_run: Path, tmp_path: Path
) -> None:
    shutil.copy(pruned_run / "run.json", tmp_path)
    with pytest.raises(RunFolderError):
        draw(RunFolder(tmp_path), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


@PICTURES
def test_without_matplotlib_the_extra_is_named(
    draw: Draw, pruned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[report\]'"):
        draw(RunFolder(pruned_run), tmp_path / "picture.png")
