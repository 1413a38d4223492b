"""What `polarprune collapse-onnx` reads, refuses, prints and writes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from random_onnx import Build, Value, conv
from typer.testing import CliRunner

from polarprune.cli import app
from polarprune.errors import BackendUnavailable, Refused
from polarprune_export import collapse_onnx
from polarprune_export.onnx_collapse import reading


def model(zeros: bool = True, **inputs: Any) -> onnx.ModelProto:
    b = Build(0)
    w = np.asarray(b.random.uniform(0.2, 1, (6, 3, 3, 3)), np.float32)
    w[[1, 4]] = 0 if zeros else 1
    x = b.one("Relu", [b.one("Conv", ["x", b.constant(w, "w")])])
    second = np.asarray(b.random.uniform(0.2, 1, (2, 6, 3, 3)), np.float32)
    last = b.one("Conv", [x, b.constant(second, "w")])
    return b.model([last], **(inputs or {"x": (3, 8, 8)}))


def external(folder: Path, location: str, **entries: int) -> None:
    """in.onnx in the folder, its first weight in another file."""
    made = model()
    tensor = made.graph.initializer[0]
    content = tensor.raw_data
    (folder / "weights.bin").write_bytes(content)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": len(content), **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "in.onnx").write_bytes(made.SerializeToString())


def _truncated(folder: Path) -> None:
    content = model().SerializeToString()
    (folder / "in.onnx").write_bytes(content[: len(content) * 2 // 3])


def _garbage(folder: Path) -> None:
    (folder / "in.onnx").write_bytes(np.random.default_rng(0).bytes(1000))


def _text(folder: Path) -> None:
    (folder / "in.onnx").write_text("This is no model.\n" * 20)


def _empty(folder: Path) -> None:
    (folder / "in.onnx").write_bytes(b"")


def _missing(folder: Path) -> None:
    pass


def _directory(folder: Path) -> None:
    (folder / "in.onnx").mkdir()


def _without_outputs(folder: Path) -> None:
    made = model()
    del made.graph.output[:]
    (folder / "in.onnx").write_bytes(made.SerializeToString())


def _old(folder: Path) -> None:
    made = model()
    made.opset_import[0].version = 8
    onnx.save(made, folder / "in.onnx")


def _wrong_weights(folder: Path) -> None:
    made = model()
    made.graph.node[0].input[1] = "nothing"
    onnx.save(made, folder / "in.onnx")


def _without_rank(folder: Path) -> None:
    made = model()
    made.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(made, folder / "in.onnx")


def _text_input(folder: Path) -> None:
    b = Build(0)
    made = b.model([b.one("Identity", ["x"])], x=(3,))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(made, folder / "in.onnx")


def _outside(folder: Path) -> None:
    external(folder, "../weights.bin")


def _absolute(folder: Path) -> None:
    external(folder, str(folder / "weights.bin"))


def _link(folder: Path) -> None:
    external(folder, "link.bin")
    outside = folder.parent / "outside.bin"
    outside.write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(outside)


def _absent_data(folder: Path) -> None:
    external(folder, "elsewhere.bin")


def _short_data(folder: Path) -> None:
    external(folder, "weights.bin", offset=8)


def _sparse(folder: Path) -> None:
    made = model()
    values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "s")
    places = onnx.numpy_helper.from_array(np.array([0, 5]), "places")
    made.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [6, 8]))
    onnx.save(made, folder / "in.onnx")


def _infinite(folder: Path) -> None:
    b = Build(0)
    zero = b.one("Sub", ["x", "x"])
    onnx.save(b.model([b.one("Div", [zero, zero])], x=(3,)), folder / "in.onnx")


BAD = {
    _truncated: "truncated|no ONNX",
    _garbage: "no ONNX",
    _text: "no ONNX",
    _empty: "holds an ONNX graph without operators",
    _missing: "does not exist",
    _directory: "is no file",
    _without_outputs: "holds an ONNX graph without outputs",
    _old: "opset 8, 9 to 25",
    _wrong_weights: "ONNX Runtime does not accept",
    _without_rank: "no known rank|does not accept",
    _text_input: "no random values",
    _outside: "outside of its folder",
    _absolute: "outside of its folder",
    _link: "outside of its folder",
    _absent_data: "put it beside it",
    _short_data: "which is truncated: it has ",
    _sparse: "stores sparse tensors",
    _infinite: "not finite",
}


@pytest.mark.parametrize(("spoil", "words"), BAD.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_what_cannot_be_read_is_refused_in_one_line(spoil: Any, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    spoil(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(Refused, match=words) as refusal:
        collapse_onnx(folder / "in.onnx", folder / "out.onnx")
    assert "\n" not in str(refusal.value)
    assert sorted(folder.iterdir()) == before
    answer = CliRunner().invoke(app, ["collapse-onnx", str(folder / "in.onnx"), "out.onnx"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1


def test_a_file_of_2_gb_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "in.onnx").open("wb") as file:
        file.truncate(reading.FILE_LIMIT_BYTES + 1)  # takes no room on the disk
    with pytest.raises(Refused, match="are read at most"):
        collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("out", "words"),
    [("in.onnx", "file to read"), (".", "is a folder"), ("no/out.onnx", "is no folder")],
)
def test_where_nothing_can_be_written_is_refused(out: str, words: str, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "in.onnx")
    before = (tmp_path / "in.onnx").read_bytes()
    with pytest.raises(Refused, match=words):
        collapse_onnx(tmp_path / "in.onnx", tmp_path / out)
    assert (tmp_path / "in.onnx").read_bytes() == before
    assert os.listdir(tmp_path) == ["in.onnx"]


def test_data_beside_the_model_is_read_and_written_into_one_file(tmp_path: Path) -> None:
    external(tmp_path, "weights.bin")
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report.channels == (8, 6)
    made = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert all(not tensor.external_data for tensor in made.graph.initializer)
    (tmp_path / "weights.bin").write_bytes(np.ones(162, np.float32).tobytes())
    assert not collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx").changed
    (tmp_path / "weights.bin").unlink()
    assert collapse_onnx(tmp_path / "out.onnx", tmp_path / "x.onnx").max_rel_error == 0


def test_without_onnx_runtime_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(model(), tmp_path / "in.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[cpu\]'"):
        collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["in.onnx"]


def test_the_last_line_is_one_json_object(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "in.onnx")
    paths = [str(tmp_path / name) for name in ("in.onnx", "out.onnx")]
    answer = CliRunner().invoke(app, ["collapse-onnx", *paths, "--json"])
    document = json.loads(answer.stdout.splitlines()[-1])
    assert (document["dense_channels"], document["channels"]) == (8, 6)
    assert (document["dense_nodes"], document["nodes"]) == (3, 3)
    assert document["macs_ratio"] == pytest.approx(document["macs"] / document["dense_macs"])
    assert document["onnx"] == paths[1]
    assert document["max_rel_error"] < document["tolerance"] == 1e-5
    assert "channels" in answer.stderr
    people = CliRunner().invoke(app, ["collapse-onnx", *paths])
    assert "channels" in people.stdout
    assert "Largest error" in people.stdout


def test_nothing_to_remove_is_said_and_the_file_is_a_copy(tmp_path: Path) -> None:
    onnx.save(model(zeros=False), tmp_path / "in.onnx")
    paths = [str(tmp_path / name) for name in ("in.onnx", "out.onnx")]
    answer = CliRunner().invoke(app, ["collapse-onnx", *paths])
    assert answer.exit_code == 0
    assert answer.stdout.startswith("Nothing to remove: ")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


def test_a_model_that_wants_large_images_is_run_on_large_ones(tmp_path: Path) -> None:
    b = Build(0)
    x = conv(b, Value("x", 3, 80), 4, kernel=1)
    crop = [b.constant(np.array(n)) for n in ([0, 0], [75, 75], [2, 3])]
    x.name = b.one("Slice", [x.name, *crop])
    x.name = b.one("Reshape", [x.name, b.constant(np.array([0, 4, 75, 75]))])
    made = b.model([x.name], x=(3, "h", "w"))
    onnx.save(made, tmp_path / "in.onnx")
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report.inputs[0]["x"] == (2, 3, 96, 96)


def test_equal_symbols_get_equal_sizes(tmp_path: Path) -> None:
    b = Build(0)
    made = b.model([b.one("Add", ["x", "y"])], x=(3, "s", "s"), y=(3, "s", "s"))
    onnx.save(made, tmp_path / "in.onnx")
    report = collapse_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report.inputs[0]["x"] == report.inputs[0]["y"] == (2, 3, 64, 64)
