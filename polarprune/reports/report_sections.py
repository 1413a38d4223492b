"""The sections of a report, but for latency: what was asked, what happened, what is left."""

import json
from collections.abc import Iterator

from polarprune.figure_words import WORDS, by_name
from polarprune.inspection.inspecting import SiteRow
from polarprune.reports.html_tables import Html, folded, html, meter, paragraph, table
from polarprune.reports.report_facts import ReportFacts, ResultLine
from polarprune.reports.report_words import (
    before_and_after,
    bound_words,
    certificate_words,
    counted,
    percent,
    state_words,
)


def head_section(facts: ReportFacts) -> Iterator[str]:
    """Title, what was asked for, and the figures in large."""
    config = facts.head.config
    shape = " x ".join(str(side) for side in facts.head.input_shape)
    yield f"<header><h1>{html(facts.model)} on {html(facts.data)}</h1>"
    yield paragraph(
        f"{config.get('task', 'classification')} of {len(facts.head.classes):,} classes, input "
        f"{shape}; method {config.get('method', 'consensus')}, {bound_words(facts)}",
        "soft",
    )
    if facts.head.result is None:
        yield paragraph(state_words(facts), "broken")
    else:
        rest = f"{facts.path}: its network has {facts.found.macs:,} MACs, its result says "
        if facts.found.macs is not None and facts.found.macs != facts.head.result.macs:
            yield paragraph(
                f"{rest}{facts.head.result.macs:,}: they do not belong together.", "broken"
            )
    yield '<dl class="tiles">'
    yield from (
        f"<div><dt>{html(name)}</dt><dd>{html(value)}<small>{html(note)}</small></dd></div>"
        for name, value, note in _tiles(facts)
    )
    yield "</dl></header>"


def _tiles(facts: ReportFacts) -> Iterator[tuple[str, str, str]]:
    """(name, value, note) each."""
    result = facts.head.result
    if result is None:
        yield from _tiles_so_far(facts)
        return
    for name, value in _named(result).items():
        yield name, value, _compared(facts, name)
    for name, kept, dense in (
        ("MACs kept", result.macs, result.dense_macs),
        ("parameters kept", result.params, result.dense_params),
    ):
        yield name, percent(kept / dense if dense else None, 1), f"{kept:,} of {dense:,}"
    if result.latency_ratio is not None:
        note = f"of dense, by the table; channels in multiples of {result.align}"
        yield "predicted latency", percent(result.latency_ratio, 1), note
    blocks = sum(site.kind == "block" for site in facts.found.sites)
    if blocks:
        yield "residual blocks removed", counted(result.blocks_removed), f"of {blocks}"
    yield "training MACs", percent(result.train_macs_ratio, 1), "of dense training, gates included"
    joules = "" if result.joules is None else f", {result.joules:,.0f} J on the GPU"
    yield (
        "training took",
        f"{result.seconds:,.0f} s",
        f"on {facts.head.device or 'a device'}{joules}",
    )
    for row in () if facts.latency is None else facts.latency.rows:
        times = f"{row.against_ms:.2f} to {row.ms:.2f} ms: {row.verdict.replace('_', ' ')}"
        yield f"speed, batch {row.batch}", f"{row.effect.speedup:.2f} x", times
    for key in ("agreement", "pixel_agreement", "dynamic_top1", "dynamic_miou"):
        if (share := getattr(result, key)) is not None and not facts.is_dense:
            yield WORDS[key], percent(share), "when decisions froze"


def _tiles_so_far(facts: ReportFacts) -> Iterator[tuple[str, str, str]]:
    yield "MACs, dense", f"{facts.found.dense_macs:,}", "of one image"
    yield "parameters, dense", f"{facts.found.dense_params:,}", ""
    if facts.epochs:
        last = facts.epochs[-1]
        share = getattr(last, facts.headline)
        yield WORDS[facts.headline], percent(share), f"after epoch {last.epoch}"
    if facts.cuts:
        after = facts.cuts[-1].macs_after
        dense = facts.found.dense_macs
        yield "MACs so far", percent(after / dense if dense else None, 1), f"{after:,} of {dense:,}"


def _compared(facts: ReportFacts, name: str) -> str:
    """What stands below a figure of the small network: the dense network's, if it is known."""
    dense = _named(facts.dense).get(name)
    if dense is not None:
        return f"on the test split; trained dense: {dense}"
    return "on the test split" if facts.is_dense else "on the test split; dense: not known"


def _named(result: ResultLine | None) -> dict[str, str]:
    if result is None:
        return {}
    return by_name({"top1": result.top1, "miou": result.miou, "dice": result.dice})


def epochs_section(facts: ReportFacts, picture: Html) -> Iterator[str]:
    """Accuracy and MACs over time."""
    yield "<section><h2>Accuracy and MACs over time</h2>"
    if not facts.epochs:
        yield (
            paragraph("No epoch is over yet, or metrics.jsonl is not in the folder.") + "</section>"
        )
        return
    yield picture
    figures = [
        key for key in ("top1", "miou", "dice") if getattr(facts.epochs[-1], key) is not None
    ]
    heads = ["epoch", "step", "loss", *(WORDS[key] for key in figures), "MACs", "training MACs"]
    rows = [
        [
            f"{line.epoch:,}",
            f"{line.step:,}",
            "-" if line.loss is None else f"{line.loss:.4f}",
            *(percent(getattr(line, key)) for key in figures),
            counted(line.macs),
            percent(line.train_macs_ratio, 1),
        ]
        for line in facts.epochs
    ]
    yield folded("Every epoch", table([], heads, rows))
    yield "</section>"


def gates_section(facts: ReportFacts, picture: Html | None) -> Iterator[str]:
    """Openness over time, and every site."""
    if facts.is_dense:
        return
    yield "<section><h2>Gates</h2>"
    if picture is None:
        yield paragraph("No gate has decided anything yet, or openness.jsonl is not in the folder.")
    else:
        yield picture
    agreement = facts.cuts[-1].site_agreement if facts.cuts else None
    rows = [_site_cells(facts, site, agreement or {}) for site in facts.found.sites]
    heads = ["units", "kept", "openness, lowest", "mean", "highest", "agreement", "MACs share"]
    note = (
        "Openness: how likely a unit is open, as it was written last. Agreement: share of "
        "decisions on held-out images that were already as they were frozen. MACs share: what the "
        "site touches; an operator between two sites counts for both."
    )
    yield folded(
        f"Every gate site ({len(rows)})",
        table(["site", "kind"], heads, rows) + paragraph(note, "soft"),
    )
    yield "</section>"


def _site_cells(facts: ReportFacts, site: SiteRow, agreement: dict[str, float]) -> list[object]:
    kept: object = "-"
    if site.kept is not None:
        kept = f"{site.kept:,}"
        if site.kind == "block":
            kept = "kept" if site.kept else Html('<span class="removed">removed</span>')
    spread = ["-", "-", "-"]
    if facts.story is not None:
        values = facts.story.final(site)
        spread = [f"{value:.3f}" for value in (min(values), sum(values) / len(values), max(values))]
    return [
        site.name, site.kind, f"{site.units:,}", kept, *spread,
        percent(agreement.get(site.name)), percent(site.macs_share, 1),
    ]  # fmt: skip


def cuts_section(facts: ReportFacts) -> Iterator[str]:
    """Every cut, its certificate in plain words, and what it took from where."""
    yield "<section><h2>Cuts</h2>"
    if not facts.cuts:
        words = "Nothing was cut." if facts.head.result is not None else "Nothing was cut yet."
        yield paragraph(words) + "</section>"
        return
    figure = WORDS[facts.headline]
    heads = [
        "step", "units cut", "blocks removed", "MACs before", "MACs after", "largest error",
        f"{figure} before", f"{figure} after",
    ]  # fmt: skip
    rows = []
    for cut in facts.cuts:
        before, after = before_and_after(cut, facts.headline)
        error = "-" if cut.max_rel_error is None else f"{cut.max_rel_error:.1e}"
        rows.append(
            [
                f"{cut.step:,}", counted(cut.units), counted(cut.blocks_removed),
                f"{cut.macs_before:,}", f"{cut.macs_after:,}", error,
                percent(before), percent(after),
            ]
        )  # fmt: skip
    yield table([], heads, rows)
    yield paragraph("Largest error: relative, of the check in float64. MACs: of one image.", "soft")
    for cut in facts.cuts:
        yield f"<h3>The certificate of the cut at step {cut.step:,}</h3>"
        yield paragraph(" ".join(certificate_words(cut, facts.headline)))
        if cut.sites:
            took = ", ".join(f"{name}: {count:,}" for name, count in cut.sites.items())
            yield folded("Units cut, site by site", paragraph(took, "soft"))
    yield "</section>"


def layers_section(facts: ReportFacts, picture: Html | None) -> Iterator[str]:
    """Channels of each convolution before and after, and which blocks are gone."""
    if picture is None:
        return
    yield "<section><h2>What is left</h2>"
    yield picture
    blocks = [site for site in facts.found.sites if site.kind == "block"]
    gone = [site.name for site in blocks if site.kept == 0]
    if blocks:
        words = f"Residual blocks removed: {len(gone)} of {len(blocks)}"
        yield paragraph(f"{words}{': ' if gone else ''}{', '.join(gone)}.")
    rows = [
        [
            layer.name,
            layer.block or "",
            f"{layer.channels:,}",
            Html(f"{layer.kept or 0:,}{meter((layer.kept or 0) / layer.channels)}"),
        ]
        for layer in facts.found.layers
    ]
    heads = ["channels before", "after"]
    yield folded(f"Every layer ({len(rows)})", table(["layer", "in block"], heads, rows))
    yield "</section>"


def origin_section(facts: ReportFacts) -> Iterator[str]:
    """What it takes to repeat the run."""
    head = facts.head
    precision = {True: "bfloat16 autocast", False: "float32", None: "not recorded"}[head.bf16]
    versions = ", ".join(f"{name} {v}" for name, v in (head.versions or {}).items())
    rows: list[tuple[str, object]] = [
        ("seed", head.seed),
        ("versions", versions),
        ("git revision", head.git),
        ("device", head.device),
        ("training precision", precision),
        ("threads", head.threads),
        ("classes", ", ".join(head.classes)),
    ]
    yield "<section><h2>Where it comes from</h2>"
    yield table(["", ""], [], [[name, _or_dash(value)] for name, value in rows])
    settings = [[name, _setting(value)] for name, value in head.config.items()]
    yield folded("Every setting", table(["setting", "value"], [], settings))
    yield "</section>"


def _or_dash(value: object) -> object:
    return "-" if value is None or value == "" else value


def _setting(value: object) -> str:
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value)
