"""The tables of `polarprune inspect`, for people."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from polarprune.figure_words import by_name, sentence, task_figures
from polarprune.inspection.inspecting import BundleInspection, NetworkInspection, SiteRow
from polarprune.manifest import CertificateLink
from polarprune.runs.run_folder import GO_ON

_SHARES_OVERLAP = (
    "MACs share: what the site touches; an operator between two sites counts for both."
)


def make_table(title: str, left: list[str], right: list[str]) -> Table:
    """A table with text columns on the left and numbers on the right."""
    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def network_tables(found: NetworkInspection) -> Iterator[Table | str]:
    """Sites, totals, refusals."""
    shape = " x ".join(str(side) for side in found.input_shape)
    title = f"{found.model}, input {shape}: {len(found.sites)} gate sites"
    sites = make_table(
        title, ["site", "kind", "tied with"], ["units", "kept", "MACs a unit", "MACs share"]
    )
    for row in found.sites:
        share = f"{100 * row.macs_share:.1f} %"
        sites.add_row(
            row.name,
            row.kind,
            _tied(row),
            f"{row.units:,}",
            _kept(row),
            f"{row.unit_macs:,}",
            share,
        )
    yield sites
    yield _SHARES_OVERLAP
    yield from _totals(found)
    if not found.refused:
        yield "Refused: nothing."
        return
    refused = make_table("Refused", ["where", "reason"], [])
    for refusal in found.refused:
        refused.add_row(refusal.where, refusal.reason)
    yield refused


def _tied(row: SiteRow) -> str:
    """The other layers that write the same channels; the first two of many."""
    others = [layer for layer in row.writers if layer != row.name]
    more = f", {len(others) - 2} more" if len(others) > 2 else ""
    return ", ".join(others[:2]) + more


def _kept(row: SiteRow) -> str:
    if row.kept is None:
        return "-"
    if row.kind == "block":
        return "kept" if row.kept else "removed"
    return f"{row.kept:,}"


def _totals(found: NetworkInspection) -> Iterator[Table | str]:
    if found.macs is None or found.params is None:
        yield f"MACs {found.dense_macs:,}, parameters {found.dense_params:,}."
        if found.kind == "run":
            yield f"The run is not finished; {GO_ON}"
        return
    totals = make_table("", [""], ["dense", "pruned", "kept"])
    for name, dense, pruned in (
        ("MACs", found.dense_macs, found.macs),
        ("parameters", found.dense_params, found.params),
    ):
        totals.add_row(name, f"{dense:,}", f"{pruned:,}", f"{100 * pruned / dense:.1f} %")
    blocks = sum(row.kind == "block" for row in found.sites)
    if blocks:
        left = blocks - (found.blocks_removed or 0)
        totals.add_row("residual blocks", str(blocks), str(left), f"{100 * left / blocks:.1f} %")
    yield totals
    for name, value in by_name(found.figures).items():
        yield f"{sentence(name)} on the test split: {value}."


def bundle_tables(found: BundleInspection) -> Iterator[Table | str]:
    """Files, certificate, and what a server needs to know."""
    manifest = found.manifest
    files = make_table(f"bundle {manifest.name}", ["file", "digest"], ["bytes"])
    for file in found.files:
        files.add_row(file.name, "ok" if file.problem is None else "NOT OK", f"{file.bytes:,}")
    yield files
    chain = make_table(
        "certificate",
        ["stage", "against", "inputs", "passed"],
        ["n", "largest error", "tolerance", "top-1 agreement"],
    )
    for link in manifest.certificate:
        chain.add_row(*_link_cells(link))
    yield chain
    yield from (f"{link.stage}: {link.note}" for link in manifest.certificate if link.note)
    yield f"Real images in the certificate: {manifest.real_images}."
    for kind, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            sides = " x ".join("batch" if side < 0 else str(side) for side in tensor.shape)
            yield f"{kind} {tensor.name}: {tensor.dtype}, {sides}"
    yield from _engine_lines(found)
    yield from _preprocessing_lines(found)
    if manifest.accuracy is not None:
        accuracy = manifest.accuracy
        yield (
            f"{sentence(task_figures(accuracy.figures))} on {accuracy.data} "
            f"(n = {accuracy.n:,}), measured with {accuracy.measured_with}"
            f"{_before(found)}."
        )


def _before(found: BundleInspection) -> str:
    before = found.manifest.accuracy_before
    return "" if before is None else f"; before, in float32: {task_figures(before.figures)}"


def _link_cells(link: CertificateLink) -> list[str]:
    passed = "not made" if link.passed is None else "yes" if link.passed else "NO"
    agreement = "-" if link.top1_agreement is None else f"{100 * link.top1_agreement:.2f} %"
    error, tolerance = (
        "-" if value is None else f"{value:.1e}" for value in (link.max_rel_error, link.tolerance)
    )
    return [
        link.stage, link.against, link.inputs or "-", passed, f"{link.n:,}", error, tolerance,
        agreement,
    ]  # fmt: skip


def _engine_lines(found: BundleInspection) -> Iterator[str]:
    engine, batch = found.manifest.engine, found.manifest.batch
    if found.manifest.kept_float32:
        kept = ", ".join(found.manifest.kept_float32)
        yield f"In float32 all the same ({found.manifest.kept_because}): {kept}."
    if engine is None:
        yield f"Precision {found.manifest.precision}; no engine; runs on {found.manifest.runs_on}."
        return
    yield f"Precision {found.manifest.precision}; batch {batch.min}:{batch.opt}:{batch.max}."
    yield f"Engine {engine.runtime} {engine.version} runs on: {engine.runs_on}"


def _preprocessing_lines(found: BundleInspection) -> Iterator[str]:
    steps = found.manifest.preprocessing
    if steps is None:
        yield "Preprocessing: not known."
    else:
        mean, std = (", ".join(f"{x:.4f}" for x in xs) for xs in (steps.mean, steps.std))
        yield (
            f"Preprocessing: upright, shorter side to {steps.resize_side} ({steps.interpolation}, "
            f"antialiased), centre {steps.height} x "
            f"{steps.width}, {steps.color} / 255, minus ({mean}), over ({std}), {steps.layout}"
            f"{'; from the division on inside of the graph' if steps.embedded else ''}."
        )
    classes = found.manifest.classes
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    yield f"Classes ({len(classes)}): {shown}." if classes else "Classes: not known."
