"""Which networks of torchvision and timm can be cut, how exactly, how fast?

    python -m benchmarks.coverage --only lcnet_035 --skip-onnx --work tiny.jsonl    # a rehearsal
    python -m benchmarks.coverage               # all of them: hours; a stopped run goes on

Each network runs in a process of its own (what is asked of it: coverage_checks.py): gates are
attached at its own input size, a random half of each channel site is closed and cut, and the result
is compared in float64, in evaluation and in training mode, with the frozen gated network and with
the original eager network, whose closed input positions are zeroed by hooks. MACs, a second cut,
a saved file and the ONNX graph are checked too. Weights are random, nothing is downloaded.

Rows are appended to the work file as they come; a row is used again when settings and code are the
same. Exit code 1 when a result is wrong, or a network crashes or takes too long; a refusal with a
clear reason is none of these.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage.checks import Settings, check_network
from benchmarks.coverage.models import PARAMETER_LIMIT, timm_names, torchvision_sizes
from benchmarks.coverage.tables import dump, gist, summarise, table
from benchmarks.records import describe_machine

HERE = Path(__file__).parents[1]
RECORD = HERE / "results" / "coverage.json"
WORK = Path(tempfile.gettempdir()) / "polarprune-coverage.jsonl"
BROKEN = ("WRONG", "crash", "timeout")

Row = dict[str, Any]


def code_digest() -> str:
    """Of the library, the exporter and these programs: rows of other code are not used again."""
    root, digest = HERE.parent, hashlib.sha256()
    files = [*root.glob("polarprune/**/*.py"), *root.glob("export/**/*.py")]
    for file in sorted([*files, *(HERE / "coverage").glob("[cmrs]*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def one(name: str, settings: Settings, out: Path) -> None:
    """Check one network in this process, writing its row as far as it has come."""

    def save(row: Row) -> None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(row))
        os.replace(partial, out)

    torch.set_num_threads(1)
    check_network(name, settings, save)


def in_a_process(name: str, settings: Settings, timeout: float) -> Row:
    """One network's row, whatever becomes of the process that makes it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        arguments = [
            "--one",
            name,
            "--one-out",
            str(out),
            "--settings",
            json.dumps(asdict(settings)),
        ]
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.coverage", *arguments],
            cwd=HERE.parent,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its whole session, which is its own
            process.communicate()
            return _ended(name, settings, out, "timeout", f"not done after {timeout:g} s")
        if process.returncode:
            last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            return _ended(name, settings, out, "crash", last[:300])
        row: Row = json.loads(out.read_text())
        return row


def _environment() -> dict[str, str]:
    """One thread, and bytecode: without it each process would compile torch's files anew."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "OMP_NUM_THREADS": "1"}


def _ended(name: str, settings: Settings, out: Path, kind: str, line: str) -> Row:
    row: Row = {"name": name, "settings": asdict(settings), "problems": [], "stage": "start"}
    if out.exists():
        row = json.loads(out.read_text())
    row["problems"].append({"stage": row["stage"], "kind": kind, "line": line})
    # A wrong number seen before the end is worse than the end.
    wrong = any(problem["kind"] == "WRONG" for problem in row["problems"])
    row["verdict"] = "WRONG" if wrong else kind
    return row


def finished(work: Path, settings: Settings, digest: str) -> dict[str, Row]:
    """The rows of the work file that still hold."""
    found: dict[str, Row] = {}
    for line in work.read_text().splitlines() if work.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off when a run was stopped
        if row["code"] == digest and row["settings"] == asdict(settings):
            found[row["name"]] = row
    return found


def run_all(
    names: list[str], settings: Settings, *, work: Path, jobs: int, timeout: float
) -> list[Row]:
    """The row of each network, from the work file or made now; in the order of the names."""
    digest = code_digest()
    rows = finished(work, settings, digest)
    left = [name for name in names if name not in rows]
    with ThreadPoolExecutor(jobs) as pool, work.open("a") as file:
        futures = [pool.submit(in_a_process, name, settings, timeout) for name in left]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                row = {**future.result(), "code": digest}
                rows[row["name"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"{count}/{len(left)} {row['name']}: {row['verdict']}: {gist(row)}", flush=True
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [rows[name] for name in names]


def make_record(
    rows: list[Row], left_out: dict[str, int], settings: Settings, timeout: float
) -> dict[str, Any]:
    """What is written."""
    return {
        "what": "gates attached to and channels cut from networks with random weights",
        "machine": {**describe_machine(), "timm": version("timm")},
        "settings": {**asdict(settings), "timeout": timeout},
        "code": code_digest(),
        "n": len(rows),
        "summary": summarise(rows),
        "left_out": left_out,
        "rows": [{k: v for k, v in r.items() if k not in ("settings", "code")} for r in rows],
    }


def put_into(record: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """A record with some rows made again, which it names together with their code."""
    rows = {row["name"]: row for row in newer["rows"]}
    whole = [rows.get(row["name"], row) for row in record["rows"]]
    again = {**record.get("made_again", {}), **dict.fromkeys(rows, newer["code"])}
    return {**record, "summary": summarise(whole), "made_again": again, "rows": whole}


def main() -> None:
    """Check the networks, write the record and its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, a thread each")
    parser.add_argument("--work", type=Path, default=WORK, help="rows so far, one JSON a line")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one network")
    parser.add_argument("--image-size", type=int, help="in place of each network's own")
    parser.add_argument("--compare-size", type=int, default=Settings.compare_size)
    parser.add_argument("--repeats", type=int, default=Settings.repeats, help="of each timing")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--skip-onnx", action="store_true")
    parser.add_argument("--into", type=Path, help="put these rows into that record, named as rerun")
    parser.add_argument("--record", type=Path, help="results/coverage.json, but not with --only")
    for internal in ("--one", "--one-out", "--settings"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, Settings(**json.loads(args.settings)), Path(args.one_out))
        return
    settings = Settings(
        image_size=args.image_size,
        compare_size=args.compare_size,
        seed=args.seed,
        repeats=args.repeats,
        onnx=not args.skip_onnx,
    )
    sizes = torchvision_sizes()
    left_out = {name: size for name, size in sizes.items() if size >= PARAMETER_LIMIT}
    names = [*timm_names(), *(name for name in sizes if name not in left_out)]
    names = [name for name in names if re.search(args.only, name)]
    rows = run_all(names, settings, work=args.work, jobs=args.jobs, timeout=args.timeout)
    record = make_record(rows, left_out, settings, args.timeout)
    if args.into:
        record = put_into(json.loads(args.into.read_text()), record)
    path = args.into or args.record or (None if args.only else RECORD)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(record))
        path.with_suffix(".md").write_text(table(record))
    print(json.dumps({k: v for k, v in record["summary"].items() if k != "keeps_too_much"}))
    sys.exit(any(row["verdict"] in BROKEN for row in rows))


if __name__ == "__main__":
    main()
