"""Schemathesis over the OpenAPI description of a real server: do the two agree, whatever is sent?

    python -m venv VENV && VENV/bin/pip install schemathesis
    python -m benchmarks.hostile_input schemathesis --tool VENV/bin/schemathesis

It is no dependency of ours. Two runs: over the description as it is served, with all of its checks
but one; and over one that is narrowed to the model that is served, where that check can hold too:
`positive_data_acceptance` wants every request that fits the description to be taken, and a
description of all models cannot say which shapes one of them takes, or that no request loads one.

Ends with 1 where a check failed.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.hostile_input.record import RECORD, add_case
from polarprune_deploy.serving.openapi import openapi_document
from tests.deploy.serving.hostile_server import HostileServer
from tests.deploy.serving.served_bundle import make_folder

LEFT_OUT = "positive_data_acceptance"
CONFIG = '[parameters]\nmodel = "small"\nversion = "1"\n'
MOST_SECONDS = 900


def narrowed_document() -> dict[str, Any]:
    """The description, of inference alone, in JSON alone, as the small bundle takes it."""
    document = openapi_document()
    document["paths"] = {
        path: found for path, found in document["paths"].items() if path.endswith("/infer")
    }
    for path in document["paths"].values():
        operation = path["post"]
        operation["parameters"] = []
        content = operation["requestBody"]["content"]
        operation["requestBody"]["content"] = {"application/json": content["application/json"]}
    schemas = document["components"]["schemas"]
    tensor = schemas["InferInput"]
    tensor["properties"] |= {
        "name": {"const": "input"},
        "datatype": {"const": "FP32"},
        "shape": {"const": [1, 3, 8, 8]},
        "data": {
            "type": "array",
            "items": {"type": "number", "minimum": -100, "maximum": 100},
            "minItems": 192,
            "maxItems": 192,
        },
    }
    del tensor["properties"]["parameters"]
    tensor["required"] = ["name", "datatype", "shape", "data"]
    tensor["additionalProperties"] = False
    request, asked = schemas["InferRequest"], schemas["AskedOutput"]
    request["properties"]["inputs"]["maxItems"] = 1
    request["properties"]["outputs"]["maxItems"] = 1
    asked["properties"]["name"] = {"const": "logits"}
    parameters = request["properties"]["parameters"]
    # A schema takes 5.0 for an integer, and a short deadline for one that can be kept.
    del parameters["properties"]["timeout"]
    # What no schema says of unknown keys: no number in them may be beyond 64 bits.
    for holder in (request, asked, parameters, asked["properties"]["parameters"]):
        holder["additionalProperties"] = False
    return document


def run_tool(tool: Path, folder: Path, words: list[str]) -> dict[str, Any]:
    """Counts of one run."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [str(tool.resolve()), "run", *words, "--checks", "all", "--continue-on-failure",
               "--no-color", "--report", "json", "--report-json-path", str(report)]  # fmt: skip
    start = time.monotonic()
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
    )
    if not report.is_file():
        raise SystemExit(f"schemathesis left no report:\n{ended.stdout[-2000:]}{ended.stderr}")
    found = json.loads(report.read_text())
    return {
        "version": found["schemathesis_version"],
        "options": words[1:],
        "exit_code": ended.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "operations": {key: found["operations"][key] for key in ("total", "tested", "errored")},
        "test_cases": found["test_cases"],
        "phases": {name: phase["status"] for name, phase in found["phases"].items()},
        "failures": [
            {key: each[key] for key in ("type", "title", "count", "operations")}
            for each in found["failures"]
        ],
        "errors": len(found["errors"]),
        "taken": {
            operation: sum(phase["accepted"] for phase in phases.values())
            for operation, phases in found["valid_rates"].items()
        },
    }


def study(tool: Path, examples: int, seed: int) -> dict[str, Any]:
    """Both runs over one server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = HostileServer(make_folder(folder / "bundles"))
        narrowed = folder / "narrowed.json"
        narrowed.write_text(json.dumps(narrowed_document()))
        often = ["--seed", str(seed), "--max-examples", str(examples)]
        try:
            server.wait_ready()
            url, before = server.url, server.resident_bytes()
            served = run_tool(
                tool, folder, [f"{url}/openapi.json", *often, "--exclude-checks", LEFT_OUT]
            )
            fitting = ["--mode", "positive", "--phases", "coverage,fuzzing"]
            narrow = run_tool(tool, folder, [str(narrowed), *often, *fitting, "--url", url])
            after = server.resident_bytes()
            server.check_well()
        finally:
            code = server.stop()
    narrow["options"] = narrow["options"][:-2]  # the port is another each time
    return {
        "seed": seed,
        "max_examples": examples,
        "served_description": served,
        "narrowed_description": narrow,
        "resident_bytes": [before, after],
        "server_failures": server.failures(),
        "exit_code": code,
    }


def main(words: list[str]) -> int:
    """Study, record, print; 1 where a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tool", type=Path, required=True, help="the program schemathesis")
    parser.add_argument("--examples", type=int, default=200, help="of each operation, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", default=str(RECORD), help="empty: none")
    options = parser.parse_args(words)
    found = study(options.tool, options.examples, options.seed)
    if options.record:
        add_case("schemathesis", found, Path(options.record))
    failed = bool(found["exit_code"] or found["server_failures"])
    for name in ("served_description", "narrowed_description"):
        run = found[name]
        print(f"{name}: {run['test_cases']['generated']} cases of {run['operations']['tested']} "
              f"operations in {run['seconds']} s, {len(run['failures'])} kinds of failures, "
              f"{run['errors']} errors; phases {run['phases']}")  # fmt: skip
        for failure in run["failures"]:
            print(" ", failure)
        failed = failed or bool(run["failures"] or run["errors"] or run["exit_code"])
    return 1 if failed else 0
