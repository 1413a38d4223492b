"""The coverage record's summary, and its tables for people."""

import json
import statistics
from collections import Counter, defaultdict
from typing import Any

from benchmarks.coverage.models import PARAMETER_LIMIT, is_convolutional_classifier

VERDICTS = ("exact", "refused", "WRONG", "crash", "timeout")
KEEPS_TOO_MUCH = 0.35
"""Half of all channels leaves about a quarter of a network without refusals."""
WEAK_VARIATION = 1e-6
"""Outputs that differ less from image to image say little about a network."""

Row = dict[str, Any]


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Counts and extremes over all rows."""
    errors = [row[part][mode] for row in rows for part in ("exact", "reference", "blocks")
              for mode in ("evaluation", "training") if part in row]  # fmt: skip
    classifiers = [r for r in rows if is_convolutional_classifier(r["name"]) and "kept" in r]
    linted = [r["onnx"] for r in rows if "lint" in r.get("onnx", {})]
    exported = [r["onnx"] for r in rows if "parity" in r.get("onnx", {})]
    return {
        "networks": len(rows),
        **{verdict: sum(r["verdict"] == verdict for r in rows) for verdict in VERDICTS},
        "largest_error": max(errors, default=None),
        "median_kept": _median(rows),
        "with_foreign_layers": sum(bool(r.get("foreign_layers")) for r in rows),
        "reference_complete": sum("reference" in r and not r["reference"]["skipped"] for r in rows),
        "reference_in_part": sum(bool(r.get("reference", {}).get("skipped")) for r in rows),
        "repairs": sum(r.get("repairs", 0) for r in rows),
        "onnx_parity_held": len(exported),
        "onnx_lint_refused": sum(found["lint"] is not None for found in linted),
        "weak_signal": [r["name"] for r in rows if weakest_variation(r) < WEAK_VARIATION],
        "keeps_too_much": [
            {
                "name": r["name"],
                "kept": round(r["kept"], 3),
                "least": round(0.25 + 0.25 * r["one_sided"], 3),
                "pinned": dict(list(r["pinned"].items())[:3]),
            }
            for r in sorted(classifiers, key=lambda r: -r["kept"])
            if r["kept"] > KEEPS_TOO_MUCH
        ],
    }


def gist(row: Row) -> str:
    """The line that decided the verdict, or what was kept."""
    lines = [p["line"] for p in row["problems"] if p["kind"] == row["verdict"]]
    return lines[0] if lines else f"kept {row['kept']:.3f}"


def weakest_variation(row: Row) -> float:
    """The smallest difference from image to image that a comparison had to go on."""
    found = [
        row[part][f"{mode}_variation"]
        for part in ("exact", "blocks")
        for mode in ("evaluation", "training")
        if part in row
    ]
    return min(found, default=1.0)


def table(record: dict[str, Any]) -> str:
    """The whole record as Markdown."""
    rows, summary = record["rows"], record["summary"]
    counts = ", ".join(f"{summary[verdict]} {verdict}" for verdict in VERDICTS)
    settings = record["settings"]
    parts = [
        "# Which networks can be cut, how exactly, how fast?",
        f"{summary['networks']} networks: {counts}. Made by `python -m benchmarks.coverage`; "
        "seed {seed}, a random half of each channel site closed, errors in float64 on "
        "{batch} images; one network is one sample.".format(**settings),
        "kept: share of the MACs at the network's own size. error: the largest relative one of "
        "collapsed against frozen gates (also with half of the blocks closed) and against the "
        "original network with hooks, in both modes; *: some layers could not be hooked and their "
        "sites stayed open there. Seconds are medians in float32 at the network's own size.",
        _rows_table(rows),
        "## What went wrong or was refused as a whole",
        _problems(rows) or "Nothing.",
        f"## Convolutional classifiers that keep more than {KEEPS_TOO_MUCH}",
        "At best: what half of all channels could leave, were nothing refused; layers that read "
        "the image, write the output, or are grouped only shrink by half. Then the share of the "
        "MACs at inputs that each refusal keeps.",
        _too_much(summary) or "None.",
        "## Refusals within networks, by reason",
        _refusals(rows),
        "## Left out",
        _left_out(record["left_out"]) or "Nothing.",
    ]
    return "\n\n".join(parts) + "\n"


def _rows_table(rows: list[Row]) -> str:
    lines = [
        "| network | verdict | size | blocks | channel sites (units) | kept | with blocks | error "
        "| attach s | collapse s | ONNX parity | refusals |",
        "|" + "---|" * 12,
    ]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    sites, units = row.get("sites", {}), row.get("units", {})
    errors = [row[part][mode] for part in ("exact", "reference", "blocks") if part in row
              for mode in ("evaluation", "training")]  # fmt: skip
    partial = "*" if row.get("reference", {}).get("skipped") else ""
    cells = [
        row["name"],
        row["verdict"],
        _size(row),
        str(sites.get("block", "")),
        f"{sites['channel']} ({units['channel']:,})" if sites else "",
        f"{row['kept']:.3f}" if "kept" in row else "",
        f"{row['blocks']['kept']:.3f}" if "blocks" in row else "",
        f"{max(errors):.0e}{partial}" if errors else "",
        _seconds(row, "attach_seconds"),
        _seconds(row, "collapse_seconds"),
        f"{row['onnx']['parity']:.0e}" if "parity" in row.get("onnx", {}) else "",
        str(len(row["refusals"])) if "refusals" in row else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _size(row: Row) -> str:
    own, compared = row.get("image_size", ""), row.get("compare_size", "")
    return str(own) if own == compared else f"{own} ({compared})"


def _seconds(row: Row, key: str) -> str:
    return f"{row[key]['median']:.2f}" if key in row else ""


def _problems(rows: list[Row]) -> str:
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        for problem in row["problems"]:
            line = _general(problem["line"])
            groups[problem["kind"], problem["stage"], line].append(row["name"])
    return "\n".join(
        f"- {kind} ({stage}): {line}: {', '.join(names)}"
        for (kind, stage, line), names in sorted(groups.items(), key=lambda g: -len(g[1]))
    )


def _general(line: str) -> str:
    """The line without what differs from network to network."""
    line = line.replace("|", "/")
    words = ["N" if any(c.isdigit() for c in word) else word for word in line.split()]
    return " ".join(words)


def _too_much(summary: dict[str, Any]) -> str:
    return "\n".join(
        f"- {found['name']}: {found['kept']} (at best {found['least']}); "
        + (", ".join(f"{s:.2f} {reason}" for reason, s in found["pinned"].items()) or "no refusal")
        for found in summary["keeps_too_much"]
    )


def _refusals(rows: list[Row]) -> str:
    counts: Counter[str] = Counter()
    networks: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for refusal in row.get("refusals", []):
            counts[refusal["reason"]] += 1
            networks[refusal["reason"]].add(row["name"])
    lines = ["| reason | refusals | networks |", "|---|---|---|"]
    lines += [f"| {r} | {n} | {len(networks[r])} |" for r, n in counts.most_common()]
    return "\n".join(lines)


def _left_out(left_out: dict[str, int]) -> str:
    return "\n".join(
        f"- {name}: {size:,} parameters, not under {PARAMETER_LIMIT:,}"
        for name, size in left_out.items()
    )


def _median(rows: list[Row]) -> float | None:
    kept = [row["kept"] for row in rows if "kept" in row]
    return statistics.median(kept) if kept else None


def dump(record: dict[str, Any]) -> str:
    """The record as JSON: a row a line, so that a change of one network is a change of one line."""
    rows = ",\n  ".join(json.dumps(row) for row in record["rows"])
    head = json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=1)
    return f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'
