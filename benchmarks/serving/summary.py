"""What the studies of serving found, in one table and one paragraph; from the records alone.

python -m benchmarks.serving summary          # writes benchmarks/results/serving.md
"""

import json
from typing import Any

from benchmarks.serving.bare_loops import SLOW
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
        "| network, threads | batch | batches full: share of the bare loop's images/s "
        "| of one whose threads spin | one client: p50 over a bare run's | over a spinning one's "
        "| Poisson, half load: p50 over the ideal batcher's | p99 | p99 over one with drawn runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, case in sorted(cases("throughput").items()):
        full, alone, tail = case["full"], case["alone"], case["poisson"]
        parts = (
            full, full["over_spinning"], alone, alone["over_spinning"], tail["p50"], tail,
            tail["over_drawn"],
        )  # fmt: skip
        lines.append(f"| {key} | {case['batch']['size']} | {' | '.join(map(interval, parts))} |")
    return lines


def litserve_lines() -> list[str]:
    """Beside LitServe."""
    lines = [
        "| clients | ours, requests/s | LitServe | its workers | times | times one worker's "
        "| the bare loop | p99 of ours, ms | of LitServe's "
        "| ours with numbers in JSON, requests/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases("litserve").values():
        for row in case["rows"]:
            rival = row["rival"]
            workers = 1 if rival == "litserve" else case["threads"]
            lines.append(
                f"| {row['clients']} | {row['ours_rps']:.0f} | {row[f'{rival}_rps']:.0f} "
                f"| {workers} | {interval(row['times'])} | {interval(row['one_worker_times'])} "
                f"| {interval(row['bound_times'])} "
                f"| {row['ours_p99_ms']:.1f} | {row[f'{rival}_p99_ms']:.1f} "
                f"| {row['ours_json_rps']:.0f} |"
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
    found = sorted(cases("throughput").items())
    some = found[0][1]["machine"]
    slow = " and ".join(
        f"{100 * case['slow_share_of_bare_runs']:.1f} % ({case['network']})" for _, case in found
    )
    parts = [
        "# Serving, measured",
        "",
        f"Client and server on the same {some['usable_cpus']} cores of {some['cpu']}, ONNX Runtime "
        f"{some['onnxruntime']}, uvicorn {some['uvicorn']}; programs: benchmarks/serving, records: "
        "benchmarks/results/serving. Ratios are medians of paired rounds with 95 % intervals.",
        "",
        *throughput_lines(),
        "",
        "The bare loop is the server's own session, whose threads sleep while they wait for each "
        "other. The ideal batcher starts all that wait the moment the engine is free: run for real "
        "with the same arrivals, or simulated with runs drawn from the bare loop's. Runs of more "
        f"than {SLOW:g} times the usual length took {slow} of the bare loops' time: the whole "
        "machine is slow now and then, which decides the p99 of whatever runs on it.",
        "",
        "Beside LitServe, the same ResNet-20 and clients in turn; LitServe with one worker on all "
        "cores and with one a core, whichever was faster. The bare loop is what a server and "
        "clients that cost nothing would reach:",
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
