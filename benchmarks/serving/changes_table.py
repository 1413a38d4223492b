"""The summary of all changes: one line a part, and whether all was as it should be."""

from collections import Counter
from typing import Any

from benchmarks.serving.change_clients import BROKEN, REFUSED, WRONG

RIGHT = ("A", "B")


def print_changes(record: dict[str, Any]) -> None:
    """The table for people."""
    print(
        f"{'part':12s} {'n':>4s} {'requests':>9s} {'right':>8s} {'wrong':>6s} {'broken':>7s} "
        f"{'no conn.':>8s} {'other statuses':16s} what else"
    )
    for part, cases in _parts(record["cases"]).items():
        outcomes: Counter[str] = Counter()
        for case in cases:
            outcomes.update(case["outcomes"])
        statuses = {k: v for k, v in sorted(outcomes.items()) if k.isdigit()}
        words = ", ".join(f"{status}: {count}" for status, count in statuses.items()) or "none"
        print(
            f"{part:12s} {sum(case['n'] for case in cases):4d} {sum(outcomes.values()):9d} "
            f"{sum(outcomes[label] for label in RIGHT):8d} {outcomes[WRONG]:6d} "
            f"{outcomes[BROKEN]:7d} {outcomes[REFUSED]:8d} {words:16s} {_verdict(cases)}; "
            f"{_more(part, cases)}"
        )


def _verdict(cases: list[Any]) -> str:
    return "as it should" if all(c["as_it_should"] for c in cases) else "NOT AS IT SHOULD"


def _parts(cases: dict[str, Any]) -> dict[str, list[Any]]:
    parts: dict[str, list[Any]] = {}
    for name, case in cases.items():
        parts.setdefault("reloads" if name.startswith("reloads ") else name, []).append(case)
    return parts


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
                f"sent before: {case['sent_before']}; exit codes {case['exit_codes']} in "
                f"{case['exit_seconds']['median']} to {case['exit_seconds']['most']} s"
            )
        case "kills":
            (case,) = cases
            return (
                f"{case['broken_without_a_kill']} broken without a kill; ready again in "
                f"{case['ready_seconds']['median']} to {case['ready_seconds']['most']} s"
            )
        case _:
            (case,) = cases
            bad = [row.get("damage", row.get("copied")) for row in case["rows"]
                   if not row["as_it_should"]]  # fmt: skip
            words = f"{case['as_they_should']} of {case['n']} as they should"
            return ": not ".join([words, *([", ".join(bad)] if bad else [])])
