"""What changes under a server's feet: reloads, versions, signals, kills, damage, a full disk.

    python -m benchmarks.serving changes --bundle BUNDLE                  # all, ten minutes or more
    python -m benchmarks.serving changes --bundle BUNDLE --part reloads --seconds 240

Closed-loop clients go on all the while. Two bundles of equal signature and other weights make the
answers tell whose they are, and each request is another one. Reloads stop when their seconds are
used up, and the next call makes up what is missing of their number.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.changes_table import PARTS, changes_lines
from benchmarks.serving.damaged_disks import study_damages, study_full_disk
from benchmarks.serving.kills import study_kills, study_terms
from benchmarks.serving.pair_of_bundles import Pair, make_pair
from benchmarks.serving.reloads import study_reloads, study_versions
from benchmarks.serving.study_records import RESULTS, add_study, write_markdown

STUDY = "changes"


def main(words: list[str]) -> None:
    """Make the changes, record, print."""
    parser = argparse.ArgumentParser(prog=STUDY, description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, action="append", help="several: again")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20, help="with SIGTERM, and with SIGKILL")
    parser.add_argument("--seconds", type=float, default=1e6, help="for reloads, in this call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args(words)
    for part in options.part or PARTS:
        name = part
        if part == "reloads":
            done = _reloads_done(options.record)
            if sum(done) >= options.reloads:
                continue
            options.missing = options.reloads - sum(done)
            name = f"reloads {len(done) + 1}"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            pair = make_pair(options.bundle, folder, options.seed)
            found = asyncio.run(_study(part, pair, folder, options))
        header = {"network": next(iter(pair.known.values())).manifest.name, "seed": options.seed}
        add_study(STUDY, name, header | found, options.record)
    lines = changes_lines(json.loads((options.record / f"{STUDY}.json").read_text()))
    write_markdown(options.record / f"{STUDY}.md", lines)
    print("\n".join(lines))


async def _study(part: str, pair: Pair, scratch: Path, options: argparse.Namespace) -> Any:
    seed = options.seed
    match part:
        case "reloads":
            until = time.monotonic() + options.seconds
            return await study_reloads(pair, scratch, seed, options.missing, until)
        case "versions":
            return await study_versions(
                pair, scratch, seed, options.versions, options.versions // 4
            )
        case "terms":
            return await study_terms(pair, scratch, seed, options.kills)
        case "kills":
            return await study_kills(pair, scratch, seed, options.kills)
        case "damages":
            return await study_damages(pair, scratch, seed)
        case _:
            return await study_full_disk(pair, scratch, seed)


def _reloads_done(folder: Path) -> list[int]:
    """How many each earlier call made."""
    path = folder / f"{STUDY}.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    return [case["n"] for name, case in cases.items() if name.startswith("reloads ")]
