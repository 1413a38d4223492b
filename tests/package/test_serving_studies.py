"""The studies of the server notice what they are there to notice, and their tables are true."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import soak
from benchmarks.serving.change_clients import Sample
from benchmarks.serving.changes_table import changes_lines
from benchmarks.serving.infer_messages import json_body
from benchmarks.serving.kills import _broken_elsewhere
from benchmarks.serving.known_answers import (
    Case,
    Known,
    WrongAnswer,
    check_answer,
    compute_known,
    draw_images,
)
from benchmarks.serving.memory_trend import memory_trend
from benchmarks.serving.pair_of_bundles import make_pair
from benchmarks.serving.reloads import Change, _describe
from benchmarks.serving.soak_record import soak_lines
from polarprune.manifest import read_manifest
from polarprune_deploy.load.http_answers import HttpAnswer
from tests.small_bundles import write_small_bundle

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "serving"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("made") / "small", with_engine=False)


@pytest.fixture(scope="module")
def known(bundle: Path) -> Known:
    return compute_known(bundle, draw_images(read_manifest(bundle), [1, 2, 2, 3], seed=0))


def answer_to(case: Case, **changes: object) -> HttpAnswer:
    (name, values), *_ = case.outputs.items()
    output = {"name": name, "datatype": "FP32", "shape": list(values.shape),
              "data": values.ravel().tolist()}  # fmt: skip
    document = {"id": case.id, "outputs": [{**output, **changes}]}
    return HttpAnswer(200, json.dumps(document).encode(), None, last=False)


def test_the_right_answer_is_right_and_any_other_is_not(known: Known) -> None:
    one, two, other, three = known.cases
    assert known.alike() == 0
    assert all(check_answer(case, answer_to(case)) < 1e-6 for case in known.cases)
    rows = answer_to(two).body.replace(two.id.encode(), other.id.encode())
    with pytest.raises(WrongAnswer, match="off by"):
        check_answer(other, HttpAnswer(200, rows, None, last=False))
    with pytest.raises(WrongAnswer, match="the id"):
        check_answer(two, answer_to(other))
    values = next(iter(three.outputs.values()))
    mixed = values[::-1].ravel().tolist()  # the rows of one request, at each other's places
    almost = (values * 1.001).ravel().tolist()
    for data in (mixed, almost, [float("nan")] * values.size):
        with pytest.raises(WrongAnswer, match="off by"):
            check_answer(three, answer_to(three, data=data))
    with pytest.raises(WrongAnswer, match="not as the protocol says"):
        check_answer(one, HttpAnswer(200, b"{", None, last=False))
    assert json.loads(json_body(one, "input"))["inputs"][0]["data"] == one.images.ravel().tolist()


def test_a_twin_has_the_same_signature_and_answers_nothing_as_the_first_does(
    bundle: Path, tmp_path: Path
) -> None:
    pair = make_pair(bundle, tmp_path, seed=0)
    first, twin = (read_manifest(folder) for folder in pair.folders.values())
    assert (twin.inputs, twin.outputs, twin.batch) == (first.inputs, first.outputs, first.batch)
    assert twin.files.keys() == first.files.keys()
    for case, other in zip(pair.known["A"].cases, pair.known["B"].cases, strict=True):
        np.testing.assert_array_equal(case.images, other.images)
        right = {name: np.roll(v, 1, axis=1) * 1.25 for name, v in case.outputs.items()}
        for name, values in other.outputs.items():
            np.testing.assert_allclose(values, right[name], rtol=1e-5, atol=1e-6)


def test_the_trend_of_memory_finds_a_leak_and_mostly_none_where_memory_comes_and_goes() -> None:
    seconds = np.arange(300.0, 3600.0, 10.0)
    held = 0
    for seed in range(200):
        steps = 300 * np.random.default_rng(seed).standard_normal(len(seconds))
        kept = np.zeros(len(seconds))
        for i in range(1, len(seconds)):  # for about a minute
            kept[i] = 0.85 * kept[i - 1] + steps[i]
        flat = memory_trend(seconds, 150_000 + kept)
        leak = memory_trend(seconds, 150_000 + 5_000 * seconds / 3600 + kept)
        assert flat is not None
        assert leak is not None
        assert leak.low > 0
        held += flat.low < 0 < flat.high
    assert held >= 0.9 * 200, "of intervals that should hold it at 95 %"
    assert memory_trend(seconds[:100], steps[:100]) is None


def test_an_old_answer_after_a_change_and_a_connection_that_broke_by_itself_are_counted() -> None:
    change = Change("B", begun=10.0, served=11.0, known=11.1)
    samples = [
        Sample(9.0, 9.1, "A", "1"), Sample(10.5, 10.6, "A", "1"), Sample(10.9, 11.3, "B", "1"),
        Sample(12.0, 12.1, "A", "1"), Sample(13.0, 13.1, "B", "1"),
    ]  # fmt: skip
    found = _describe([change], samples, Counter())
    assert found["old_answers_after_the_change"] == 1
    assert (found["latency_ms_during"]["n"], found["latency_ms_outside"]["n"]) == (2, 3)
    broken = [Sample(1.0, 2.0, "connection broken"), Sample(5.0, 6.0, "connection broken")]
    assert _broken_elsewhere(broken, kills=[1.5]) == 1


@pytest.mark.slow
def test_a_short_soak_is_answered_rightly_and_adds_up(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    words = ["--bundle", str(bundle), "--seconds", "4", "--rate", "60", "--warm-up", "0"]
    soak.main([*words, "--record", str(path)])
    record = json.loads(path.read_text())
    assert record["complete"]
    assert record["right"] == sum(row["sent"] for row in record["sound"].values()) > 100
    assert record["hostile_handled"] == sum(row["sent"] for row in record["hostile"].values()) > 3
    assert (record["wrong"], record["lost"], record["unexpected_statuses"]) == (0, 0, 0)
    assert record["problems"] == []
    assert len(record["accounts"]) == 15
    assert all(line["adds_up"] for line in record["accounts"])
    assert record["server_exit_code"] == 0
    assert (tmp_path / "soak.md").read_text().splitlines() == soak_lines(record)


@pytest.mark.parametrize(("name", "lines"), [("soak", soak_lines), ("changes", changes_lines)])
def test_the_tables_are_made_from_the_records(name: str, lines) -> None:  # type: ignore[no-untyped-def]
    record = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text().splitlines() == lines(record)
