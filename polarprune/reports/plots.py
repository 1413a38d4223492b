"""The two pictures of a run: gates polarising over time, and channels before and after.

matplotlib comes with the extra `report` and is imported when a picture is drawn; figures are made
without pyplot, so that no window system and no global state is touched.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

from polarprune.errors import BackendUnavailable, RunFolderError
from polarprune.files.whole_files import write_whole
from polarprune.inspection.inspecting import LayerRow, NetworkInspection, SiteRow, inspect_run
from polarprune.reports.gate_story import GateStory
from polarprune.runs.run_folder import RunFolder
from polarprune.runs.run_lines import read_cuts, read_epochs, read_openness

_DOTS_PER_INCH = 130
_PHASES = {"warm-up": "#f3efe6", "search": "none", "settled": "#eaf1f4"}
_GONE, _GONE_FILL = "#c0392b", "#fbe9e7"
_BEFORE: dict[str, Any] = {"facecolor": "#e3e3e3", "edgecolor": "#a8a8a8", "linewidth": 0.8}
_GREY = "#555555"
# Names under the bars stay legible up to so many layers; beyond, every second, third, ... is named.
_NAMED_LAYERS = 60
# Up to so many, numbers and words above the bars are wide enough apart to be written level.
_ROOMY_LAYERS = 30
# The palette's last fifth is too pale on white.
_PALETTE, _PALETTE_END = "viridis", 0.82


def draw_gates(run: RunFolder, path: Path) -> None:
    """Draw the openness of every gate over the steps of training.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        RunFolderError: the run has no gates or is not finished.
    """
    figure_type()
    lines, cuts, epochs = read_openness(run.path), read_cuts(run.path), read_epochs(run.path)
    if not lines or not cuts or not epochs:
        raise RunFolderError(
            f"{run.path} has no gates that decided and were cut; draw a finished, pruned run"
        )
    story = GateStory(run.path, inspect_run(run).sites, lines, cuts, epochs)
    if story.settle_step is None:
        raise run.unfinished()
    figure = gates_figure(story)
    figure.suptitle(
        f"{run.model} on {Path(run.config['data']).name}: openness of every gate, "
        f"cut at step {story.settle_step:,}",
        fontsize=12,
        parse_math=False,
    )
    _save(figure, path)


def draw_channels(run: RunFolder, path: Path) -> None:
    """Draw the kept channels of each convolution beside the original ones, in depth order.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        RunFolderError: the run is not finished.
    """
    figure_type()
    found = inspect_run(run)
    if found.macs is None:
        raise run.unfinished()
    figure = channels_figure(found)
    figure.axes[0].set_title(
        f"{found.model}: {100 * found.macs / found.dense_macs:.1f} % of the MACs kept",
        fontsize=11,
        loc="left",
        parse_math=False,
    )
    _save(figure, path)


def gates_figure(story: GateStory) -> Any:
    """The openness of every gate over the steps, as far as it has been written.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    blocks = [site for site in story.sites if site.kind == "block"]
    channels = [site for site in story.sites if site.kind == "channel"]
    panels = [group for group in (blocks, channels) if group]
    listed = max(8, len(blocks)) if blocks else 0
    heights = [0.21 * listed + 0.6 if group is blocks else 3.6 for group in panels]
    figure = figure_type()(figsize=(11, sum(heights) + 1.5), layout="constrained")
    grid = figure.subplots(
        len(panels), 2, squeeze=False, sharey="row", sharex="col",
        gridspec_kw={"width_ratios": [5, 1], "height_ratios": heights},
    )  # fmt: skip
    for row, group in zip(grid, panels, strict=True):
        _shade_phases(row[0], story, named=row[0] is grid[0, 0])
        if group is blocks:
            _draw_block_panel(row[0], row[1], story, group)
        else:
            _draw_channel_panel(row[0], row[1], story, group)
        row[0].set(ylim=(-0.05, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1])
        row[0].spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set(xlabel="training step", xlim=(0, story.last_step))
    grid[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[:-1, 1]:
        axes.axis("off")
    return figure


def channels_figure(found: NetworkInspection) -> Any:
    """The kept channels of each convolution beside the original ones; of a finished run.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    layers = found.layers
    width = min(24.0, max(7.0, 0.33 * len(layers) + 1.5))
    figure = figure_type()(figsize=(width, 4.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    kept = [layer.kept or 0 for layer in layers]
    tallest = max(layer.channels for layer in layers)
    removed = {site.name for site in found.sites if site.kind == "block" and site.kept == 0}
    _mark_removed_blocks(axes, layers, removed, tallest)
    axes.bar(places, [layer.channels for layer in layers], width=0.78, **_BEFORE)
    colours = _colours(len(layers))
    axes.bar(places, kept, width=0.78, color=colours)
    for place, (layer, count) in enumerate(zip(layers, kept, strict=True)):
        if layer.block in removed and not count:
            continue
        size = 8 if len(layers) <= _ROOMY_LAYERS else 6
        rotation = 0 if len(layers) <= _ROOMY_LAYERS else 90
        axes.text(
            place, layer.channels + tallest * 0.012, str(count), ha="center", va="bottom",
            fontsize=size, rotation=rotation, color=_GREY,
        )  # fmt: skip
    every = -(-len(layers) // _NAMED_LAYERS)
    names = [layer.name for layer in layers]
    axes.set_xticks(list(places)[::every], names[::every], parse_math=False)
    axes.tick_params(axis="x", labelrotation=90, labelsize=8 if len(layers) <= 40 else 6.5)
    axes.set(
        xlim=(-0.6, len(layers) - 0.4), ylim=(0, tallest * 1.16), ylabel="output channels",
    )  # fmt: skip
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        *_channel_legend(colours, bool(removed)), loc="lower right", bbox_to_anchor=(1, 1),
        ncols=3, frameon=False, fontsize=9, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def figure_png(figure: Any, dots_per_inch: int) -> bytes:
    """A figure as PNG with nothing behind it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, transparent=True)
    return buffer.getvalue()


def figure_type() -> Any:
    """The class Figure of matplotlib.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable(
            "matplotlib is not installed; run: pip install 'polarprune[report]'"
        ) from error
    return Figure


def _shade_phases(axes: Any, story: GateStory, *, named: bool) -> None:
    decided = story.steps[-1] if story.settle_step is None else story.settle_step
    settled = decided if story.settle_step is None else story.last_step
    edges = [0, story.search_step, decided, settled]
    for place, (phase, colour) in enumerate(_PHASES.items()):
        left, right = edges[place], edges[place + 1]
        if right <= left:
            continue
        axes.axvspan(left, right, color=colour, zorder=0, linewidth=0)
        if named:
            axes.annotate(
                phase, ((left + right) / 2, 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9, color=_GREY,
            )  # fmt: skip
    for step in story.cut_steps:
        axes.axvline(step, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def _draw_block_panel(axes: Any, side: Any, story: GateStory, sites: list[SiteRow]) -> None:
    axes.set_ylabel("open probability, blocks")
    rows = max(8, len(sites))
    for place, (site, colour) in enumerate(zip(sites, _colours(len(sites)), strict=True)):
        for steps, values, kept in story.curves(site):
            axes.plot(steps, values, color=colour, linewidth=2.0, alpha=0.9, zorder=3)
            if kept is False:
                axes.plot(steps[-1:], values[-1:], "X", color=_GONE, markersize=8, zorder=4)
        # A list beside the panel, one row a block: names at the ends of lines would overlap.
        y = 1 - (place + 0.5) / rows
        side.plot(
            [0.0, 0.12], [y, y], color=colour, linewidth=3, transform=side.transAxes, clip_on=False
        )
        gone = story.settle_step is not None and not site.kept
        words = "" if story.settle_step is None else "  removed" if gone else "  kept"
        side.text(
            0.17, y, f"{site.name}{words}", parse_math=False,
            transform=side.transAxes, va="center", fontsize=8,
            color=_GONE if gone else _GREY, fontweight="bold" if gone else "normal",
        )  # fmt: skip


def _draw_channel_panel(axes: Any, side: Any, story: GateStory, sites: list[SiteRow]) -> None:
    from matplotlib.collections import LineCollection

    axes.set_ylabel("open probability, channels")
    units = sum(site.units for site in sites)
    alpha = min(0.8, max(0.12, 60 / units))
    for site, colour in zip(sites, _colours(len(sites)), strict=True):
        curves = story.curves(site)
        axes.add_collection(
            LineCollection(
                [list(zip(steps, values, strict=True)) for steps, values, _ in curves],
                colors=[colour],
                linewidths=0.8,
                alpha=alpha,
                zorder=2,
            )
        )
    final = [value for site in sites for value in story.final(site)]
    side.hist(final, bins=[i / 20 for i in range(21)], orientation="horizontal", color="#7f8fa6")
    title = "last written" if story.settle_step is None else "before the cut"
    side.set_title(title, fontsize=8, color=_GREY)
    side.set_xlabel("units")
    side.spines[["top", "right"]].set_visible(False)
    side.tick_params(labelleft=False)
    axes.annotate(
        f"colour: depth, {sites[0].name} (dark) to {sites[-1].name} (light)", (1, 0),
        xycoords="axes fraction", xytext=(0, -24), textcoords="offset points", ha="right",
        va="top", fontsize=8, color=_GREY, parse_math=False,
    )  # fmt: skip
    notes = []
    if story.settle_step is not None:
        kept = sum(site.kept or 0 for site in sites)
        gone = f"{units - kept:,} cut, those of removed blocks included"
        notes += [
            (0.93, 9, _GREY, f"{kept:,} of {units:,} channels kept"),
            (0.03, 9, _GONE, gone),
        ]
    for height, size, colour, words in notes:
        axes.annotate(
            words, (story.last_step, height), ha="right", fontsize=size, color=colour,
            parse_math=False,
        )  # fmt: skip


def _mark_removed_blocks(
    axes: Any, layers: tuple[LayerRow, ...], removed: set[str], tallest: int
) -> None:
    for block in dict.fromkeys(layer.block for layer in layers if layer.block in removed):
        places = [place for place, layer in enumerate(layers) if layer.block == block]
        axes.axvspan(min(places) - 0.46, max(places) + 0.46, color=_GONE_FILL, zorder=0)
        if len(layers) <= _ROOMY_LAYERS:
            axes.text(
                (min(places) + max(places)) / 2, tallest * 1.14, "removed",
                ha="center", va="top", fontsize=8, color=_GONE,
            )  # fmt: skip


def _channel_legend(colours: list[Any], with_removed: bool) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    entries = [(Patch(facecolor=colours[len(colours) // 2]), "kept"), (Patch(**_BEFORE), "before")]
    if with_removed:
        entries.append((Patch(facecolor=_GONE_FILL), "removed block"))
    return [patch for patch, _ in entries], [name for _, name in entries]


def _colours(count: int) -> list[Any]:
    """Colours from dark (first) to light (last)."""
    from matplotlib import colormaps

    palette = colormaps[_PALETTE]
    return [palette(_PALETTE_END * place / max(1, count - 1)) for place in range(count)]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    write_whole(path, buffer.getvalue())
