"""A thousand damaged bundles: each is refused in one line, or the damage was harmless.

What must never happen: another exception, a crash, a wait, or memory taken because a file says so.
The damage is in `tests/mutations`; half of it comes with digests that fit.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.mutations import FORGED, PLAIN
from tests.replaced_workers import ask_worker
from tests.small_bundles import ENGINE, write_small_bundle

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
MUTATIONS = 1000
SECONDS = 10.0
"""For one bundle, on a busy machine; the slowest took 0.2 s."""
PEAK_BYTES = 256 << 20
"""More than an undamaged bundle needs; 16 MB were measured, and 1 GiB is where the worker ends."""

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    folder = tmp_path_factory.mktemp("fuzz")
    bundle = write_small_bundle(folder / "bundle")
    module = "tests.bundle_fuzz_worker"
    command = [sys.executable, "-m", module, str(bundle), str(folder / "scratch")]
    return list(ask_worker(command, range(MUTATIONS), seconds=SECONDS, cwd=ROOT))


@pytest.mark.slow
def test_every_damaged_bundle_is_refused_in_one_line_or_is_harmless(
    answers: list[Answer],
) -> None:
    print(table(answers))
    assert len(answers) == MUTATIONS
    lost = [(answer["index"], answer["lost"]) for answer in answers if "lost" in answer]
    assert lost == [], "the process crashed or hung"
    for answer in answers:
        for verb in ("verify", "deploy"):
            got, where = answer[verb], f"{verb} of {answer['index']}, {answer['name']}"
            assert got["outcome"] in ("refused", "passed"), f"{where}: {got['message']}"
            assert "\n" not in got["message"], where
            assert len(got["message"]) < 1000, where
            assert got["seconds"] < SECONDS, where
            assert not any(word in got["message"].lower() for word in ("alloc", "memory")), where
    assert max(answer["peak"] - answer["start"] for answer in answers) < PEAK_BYTES


@pytest.mark.slow
def test_damage_that_matters_is_refused_and_an_engine_cannot_be_judged(
    answers: list[Answer],
) -> None:
    matters = [answer for answer in answers if answer["expected"] == "refuse"]
    missed = [(a["index"], a["name"]) for a in matters if a["verify"]["outcome"] != "refused"]
    assert len(matters) > 0.8 * MUTATIONS
    assert len(missed) <= 0.01 * len(matters), missed
    # Of an engine whose digest fits nobody can tell anything; that is what signatures are for.
    engines = [answer for answer in answers if answer["expected"] == "pass"]
    assert engines
    assert all(answer["verify"]["outcome"] == "passed" for answer in engines)


@pytest.mark.slow
def test_a_runner_refuses_what_it_reads_before_a_session_exists(answers: list[Answer]) -> None:
    for answer in answers:
        verify, deploy = answer["verify"], answer["deploy"]
        if verify["outcome"] == "refused" and deploy["outcome"] == "passed":
            # Only what a runner does not read, or what shows when the network runs.
            unread = ("parity.safetensors", ENGINE, "ONNX Runtime")
            assert any(word in verify["message"] for word in unread), answer
        if deploy["outcome"] == "refused" and verify["outcome"] == "refused":
            assert answer["sessions"] == 0 or "ONNX Runtime" in verify["message"], answer


def table(answers: list[Answer]) -> str:
    """How each kind of damage ended, and the totals of both halves."""
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    halves: defaultdict[str, Counter[str]] = defaultdict(Counter)
    plain = {mutation.name for mutation in PLAIN}
    for answer in answers:
        if "lost" in answer:
            kinds["lost"][answer["lost"]] += 1
            continue
        got = answer["verify"]
        words = got.get("kind", got["outcome"])
        kinds[answer["name"]][words] += 1
        halves["files as they lie" if answer["name"] in plain else "digests that fit"][words] += 1
    rows = [*sorted(kinds.items()), *halves.items()]
    return "\n" + "\n".join(
        f"{name:40} {', '.join(f'{words} {count}' for words, count in sorted(row.items()))}"
        for name, row in rows
    )


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    if line.strip() == "1": os.abort()
    if line.strip() == "2": time.sleep(100)
    print(json.dumps({"index": int(line)}), flush=True)
"""


def test_a_crash_and_a_wait_are_noticed_and_the_next_one_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    found = list(ask_worker(command, [0, 1, 3, 2, 4], seconds=1, cwd=tmp_path))
    assert found == [
        {"index": 0},
        {"index": 1, "lost": "died with -6"},
        {"index": 3},
        {"index": 2, "lost": "no answer in 1 s"},
        {"index": 4},
    ]


def test_both_halves_have_kinds_of_their_own() -> None:
    names = [mutation.name for mutation in (*PLAIN, *FORGED)]
    assert len(set(names)) == len(names) > 40
