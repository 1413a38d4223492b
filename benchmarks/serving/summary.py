"""What the studies of serving found, in one table and one paragraph; from the records alone.

python -m benchmarks.serving summary          # writes benchmarks/results/serving.md
"""

import json
from typing import Any

from benchmarks.serving.study_records import RESULTS

TABLE = RESULTS.parent / "serving.md"
HOSTILE = RESULTS.parent / "hostile_input.json"


def cases(name: str) -> dict[str, Any]:
    """The cases of one study."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["cases"]
    return found


def interval(found: dict[str, Any], digits: int = 2) -> str:
    """A ratio with its interval."""
    return f"{found['ratio']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def throughput_lines() -> list[str]:
    """Against the bare loop and the ideal batcher."""
    lines = [
        "| network, threads | batches at a time, images in each | share of the images/s of as many "
        "bare loops | of one bare loop on all cores | one client: p50 over a bare run's "
        "| Poisson, half load: p99 over the ideal batcher's |",
        "|---|---|---|---|---|---|",
    ]
    for key, case in sorted(cases("throughput").items()):
        lines.append(
            f"| {key} | {case['at_once']} x {case['batch']['size']} "
            f"| {interval(case['full'], 3)} "
            f"| {interval(case['full']['of_one_on_all_cores'], 3)} "
            f"| {interval(case['alone'])} | {interval(case['poisson'])} |"
        )
    return lines


def litserve_lines() -> list[str]:
    """Beside LitServe."""
    lines = [
        "| clients | ours, requests/s | LitServe | its workers | times | p99 of ours, ms "
        "| of LitServe's | ours with numbers in JSON, requests/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases("litserve").values():
        for row in case["rows"]:
            rival = row["rival"]
            workers = 1 if rival == "litserve" else case["threads"]
            lines.append(
                f"| {row['clients']} | {row['ours_rps']:.0f} | {row[f'{rival}_rps']:.0f} "
                f"| {workers} | {interval(row['times'])} | {row['ours_p99_ms']:.1f} "
                f"| {row[f'{rival}_p99_ms']:.1f} | {row['ours_json_rps']:.0f} |"
            )
    return lines


def overload_lines() -> list[str]:
    """More than can be answered."""
    lines = []
    for name, case in cases("overload").items():
        waits = case["refused_ms"]
        lines.append(
            f"{name} under {case['times']:g} times its capacity for {case['seconds']:g} s: "
            f"{100 * case['goodput_share']:.1f} % of its capacity in right answers, "
            f"{case['refused']:,} of {case['n']:,} requests refused, half of them within "
            f"{waits['p50']:.1f} ms, {100 * case['refused_within_50_ms']:.1f} % within 50 ms; "
            f"{case['wrong']} wrong, {case['failed']} failed; a single client had its usual "
            f"latency again after {case['recovery']['seconds']:.2f} s."
        )
    return lines


def soak_lines() -> list[str]:
    """The long run."""
    soak = json.loads((RESULTS / "soak.json").read_text())
    trend = soak["server"]["trend_kb_per_hour"]
    return [
        f"Soak of {soak['seconds']:.0f} s at {soak['rate']:g} requests a second, "
        f"{100 * soak['hostile_share']:g} % of them hostile: {soak['n']:,} requests, "
        f"{soak['right']:,} right, {soak['wrong']} wrong, {soak['lost']} lost, "
        f"{soak['unexpected_statuses']} unexpected; memory after the first "
        f"{soak['server']['warm_up_seconds']:.0f} s: {trend['slope'] / 1024:.1f} "
        f"[{trend['low'] / 1024:.1f}, {trend['high'] / 1024:.1f}] MB an hour."
    ]


def words() -> str:
    """The README's sentence."""
    full = {case["network"]: case for case in cases("throughput").values()}
    beside = max(next(iter(cases("litserve").values()))["rows"], key=lambda row: row["clients"])
    soak = json.loads((RESULTS / "soak.json").read_text())
    fuzz = json.loads(HOSTILE.read_text())["cases"]["fuzz"]
    shares = ", ".join(
        f"{name} {interval(case['full'])} (one client: p50 {interval(case['alone'])} times a bare "
        "run's)"
        for name, case in sorted(full.items(), reverse=True)
    )
    return (
        "`serve`, client and server on two cores: share of the bare network's images a second "
        f"with full batches: {shares}; ResNet-20 and {beside['clients']} clients: "
        f"{interval(beside['times'])} times LitServe's requests a second; an hour with "
        f"{100 * soak['hostile_share']:g} % hostile requests: {soak['right']:,} right answers, "
        f"{soak['wrong']} wrong, {soak['lost']} lost; {fuzz['bodies']:,} fuzzed bodies: "
        f"{fuzz['unexpected']} unexpected answers ([all](benchmarks/results/serving.md))."
    )


def document() -> str:
    """The page."""
    some = next(iter(cases("throughput").values()))["machine"]
    parts = [
        "# Serving, measured",
        "",
        f"Client and server on the same {some['usable_cpus']} cores of {some['cpu']}, ONNX Runtime "
        f"{some['onnxruntime']}, uvicorn {some['uvicorn']}; programs: benchmarks/serving, records: "
        "benchmarks/results/serving. Ratios are medians of paired rounds with 95 % intervals.",
        "",
        *throughput_lines(),
        "",
        "Beside LitServe, the same ResNet-20 and clients in turn; LitServe with one worker on all "
        "cores and with one worker a core, whichever was faster:",
        "",
        *litserve_lines(),
        "",
        *overload_lines(),
        "",
        *soak_lines(),
    ]
    return "\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    """Write it."""
    TABLE.write_text(document())
    print(TABLE.read_text())
