"""The table of collapsed files is made from its record, and ends where the torch side does."""

import json

from benchmarks.onnx_collapse import IMAGES, RESULTS, table

RECORD = json.loads((RESULTS / "onnx_collapse.json").read_text())


def test_the_table_is_that_of_the_record() -> None:
    assert (RESULTS / "onnx_collapse.md").read_text() == table(RECORD)
    assert [row["network"] for row in RECORD["rows"]] == list(IMAGES)


def test_every_file_ends_where_the_torch_side_does() -> None:
    for row in RECORD["rows"]:
        found = row["collapse"]
        assert found["dense_macs"] == row["torch_side"]["dense_macs"]
        assert found["macs"] <= row["torch_side"]["macs"]
        assert found["max_rel_error"] <= found["tolerance"] == 1e-5


def test_a_changed_number_is_noticed() -> None:
    changed = json.loads(json.dumps(RECORD))
    changed["rows"][0]["collapse"]["macs"] += 10**6
    assert table(changed) != table(RECORD)
