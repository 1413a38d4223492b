"""The summary of all changes: one line a part, and whether all was as it should be."""

from collections import Counter
from typing import Any

from benchmarks.serving.change_clients import BROKEN, REFUSED, WRONG

RIGHT = ("A", "B")
PARTS = ("reloads", "versions", "terms", "kills", "damages", "full disk")


def changes_lines(record: dict[str, Any]) -> list[str]:
    """The table for people, in Markdown."""
    heads = ("part", "n", "requests", "right", "wrong", "connection broken", "no connection",
             "other statuses", "what else")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for part, cases in _parts(record["cases"]).items():
        outcomes: Counter[str] = Counter()
        for case in cases:
            outcomes.update(case["outcomes"])
        statuses = {k: v for k, v in sorted(outcomes.items()) if k.isdigit()}
        cells = (
            part,
            f"{sum(case['n'] for case in cases)}",
            f"{sum(outcomes.values()):,}",
            f"{sum(outcomes[label] for label in RIGHT):,}",
            f"{outcomes[WRONG]}",
            f"{outcomes[BROKEN]}",
            f"{outcomes[REFUSED]:,}",
            ", ".join(f"{status}: {count:,}" for status, count in statuses.items()) or "none",
            f"{_verdict(cases)}; {_more(part, cases)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parts(cases: dict[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {part: [] for part in PARTS}
    for name, case in cases.items():
        found["reloads" if name.startswith("reloads ") else name].append(case)
    return {part: cases for part, cases in found.items() if cases}


def _verdict(cases: list[Any]) -> str:
    return "as it should" if all(c["as_it_should"] for c in cases) else "NOT AS IT SHOULD"


def _share(outcomes: dict[str, int]) -> str:
    right = sum(outcomes.get(label, 0) for label in RIGHT)
    return f"{right:,} of {sum(outcomes.values()):,}"


def _more(part: str, cases: list[Any]) -> str:
    match part:
        case "reloads" | "versions":
            stale = sum(case["old_answers_after_the_change"] for case in cases)
            last = max(cases, key=lambda case: int(case["n"]))
            during, outside = last["latency_ms_during"], last["latency_ms_outside"]
            words = (
                f"{stale} old answers after a change; served in "
                f"{last['seconds_to_serve']['median']} s; p99 {during['p99']} ms during, "
                f"{outside['p99']} ms outside"
            )
            if part == "versions":
                words += f"; {last['version_and_weights_differ']} of another version than named"
            return words
        case "terms":
            (case,) = cases
            return (
                f"right of those sent before the signal: {_share(case['sent_before'])}, in the "
                f"lame duck's time: {_share(case['sent_in_lame_duck'])}; exit codes "
                f"{case['exit_codes']} after {case['exit_seconds']['median']} s, "
                f"{case['exit_seconds']['most']} at most"
            )
        case "kills":
            (case,) = cases
            return (
                f"{case['broken_without_a_kill']} broken without a kill; ready again in "
                f"{case['ready_seconds']['median']} s, {case['ready_seconds']['most']} at most"
            )
        case _:
            (case,) = cases
            bad = [row.get("damage", row.get("copied")) for row in case["rows"]
                   if not row["as_it_should"]]  # fmt: skip
            words = f"{case['as_they_should']} of {case['n']} as they should"
            return ": not ".join([words, *([", ".join(bad)] if bad else [])])
