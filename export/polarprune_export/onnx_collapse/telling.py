"""A report in words and as a table."""

from rich.table import Table

from polarprune_export.onnx_collapse.collapsing import CollapseReport

MOST_REASONS = 5


def tell(report: CollapseReport) -> list[Table | str]:
    """What `polarprune collapse-onnx` prints."""
    if not report.changed:
        return [f"Nothing to remove: {report.onnx} is a copy.", *_pinned(report)]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", "kept"):
        table.add_column(name, justify="right")
    for name, (before, after) in (
        ("operators", report.nodes),
        ("channels", report.channels),
        ("parameters", report.params),
        ("MACs of an image", report.macs),
        ("bytes", report.bytes),
    ):
        share = f"{100 * after / before:.1f} %" if before else "-"
        table.add_row(name, f"{before:,}", f"{after:,}", share)
    sizes = "; ".join(
        ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in one.items())
        for one in report.inputs
    )
    return [
        table,
        f"Blocks removed (additions of zero): {report.blocks_removed}.",
        f"Largest error of an output {report.max_rel_error:.1e} of its largest value, "
        f"{report.tolerance:.0e} allowed; ONNX Runtime, random inputs ({sizes}).",
        *_pinned(report),
        f"Written: {report.onnx}",
    ]


def _pinned(report: CollapseReport) -> list[str]:
    if not report.pinned:
        return []
    shown = "; ".join(report.pinned[:MOST_REASONS])
    more = len(report.pinned) - MOST_REASONS
    return [f"Kept whole: {shown}{f'; and {more} more' if more > 0 else ''}."]
