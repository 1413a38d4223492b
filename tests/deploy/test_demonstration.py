"""The demo runs the real chain, keeps to its bounds, and cleans up behind itself."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import polarprune_export
from polarprune.errors import BackendUnavailable, RunFolderError
from polarprune.runs import training
from polarprune.runs.run_folder import RunFolder
from polarprune_deploy import benching, demonstration
from polarprune_deploy.demonstration import DemoResult, demo_table, missed_bounds, run_demo
from polarprune_export import verify_bundle

ROW = {
    "backend": "onnxruntime",
    "device": "cpu",
    "precision": "fp32",
    "batch": 1,
    "against_ms": 2.0,
    "ms": 1.0,
    "speedup": 2.0,
    "ci_low": 1.9,
    "ci_high": 2.1,
    "verdict": "no_difference_shown",
    "control": {"speedup": 1.0, "ci_low": 0.9, "ci_high": 1.1},
}


def silent(text: str, step: int, steps: int, figures: dict[str, float]) -> None:
    """Shows no progress."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoResult]:
    """The whole chain with one epoch a side; the timing, tested elsewhere, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benching, "bench", lambda *args, **kwargs: {"rows": [ROW]})
        yield run_demo(tmp_path_factory.mktemp("demo") / "out", silent, epochs=1)


@pytest.mark.slow
def test_out_is_the_run_folder_of_the_pruned_run(result: DemoResult) -> None:
    out = Path(result.pruned.run)
    run = RunFolder(out)
    assert run.result["macs"] == result.pruned.macs
    assert RunFolder(out / "dense").result["macs"] == result.dense.macs == 10_138_240
    assert result.pruned.macs_ratio <= 0.5
    for bundle in (out / "bundle", out / "dense-bundle"):
        assert verify_bundle(bundle)["passed"]
    assert {path.name for path in (out / "plots").iterdir()} == {"gates.png", "channels.png"}


@pytest.mark.slow
def test_the_json_has_the_keys_of_train_and_paths_that_open(result: DemoResult) -> None:
    document = json.loads(json.dumps(result.as_dict()))
    assert set(result.pruned.as_dict()) < set(document)
    assert document["rows"] == [ROW]
    for path in (document["run"], document["bundle"], *document["plots"]):
        assert Path(path).exists()
    assert document["test_images"] == 360
    onnx = Path(document["bundle"]) / "model.onnx"
    assert document["onnx_bytes"]["pruned"] == onnx.stat().st_size
    assert document["onnx_bytes"]["pruned"] < document["onnx_bytes"]["dense"]


@pytest.mark.slow
def test_the_table_names_both_sides(result: DemoResult) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(demo_table(result))
    words = capture.get()
    assert "10,138,240" in words
    assert "top-1 (n = 360)" in words
    assert "2.00 x [1.90, 2.10], no difference shown" in words


@pytest.mark.slow
def test_a_miss_is_said_after_the_table_and_is_exit_code_1(
    result: DemoResult, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    missed = dataclasses.replace(result, missed=("top-1 is 0.1000",))
    for outcome, code in ((missed, 1), (dataclasses.replace(result, missed=()), 0)):
        monkeypatch.setattr(demonstration, "run_demo", lambda *args, _it=outcome: _it)
        got, out, err = run("demo", "--json")
        assert got == code
        assert json.loads(out.splitlines()[-1])["missed"] == list(outcome.missed)
        assert ("error: the demo missed its bounds: top-1 is 0.1000" in err) == bool(code)


@pytest.fixture
def good() -> training.TrainResult:
    return training.TrainResult(
        run="run",
        top1=0.99,
        dense_macs=100,
        macs=50,
        macs_ratio=0.5,
        params=1,
        dense_params=2,
        blocks_removed=1,
        agreement=1.0,
        train_macs_ratio=0.7,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"top1": 0.974}, "top-1"),
        ({"macs_ratio": 0.501}, "MACs"),
        ({"blocks_removed": 0}, "blocks"),
    ],
)
def test_each_bound_can_be_missed(
    good: training.TrainResult, changes: dict[str, Any], word: str
) -> None:
    assert missed_bounds(good) == ()
    [line] = missed_bounds(dataclasses.replace(good, **changes))
    assert word in line


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendUnavailable("no")])
def test_a_demo_that_ends_early_leaves_nothing(
    existed: bool, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    def train(config: training.TrainConfig, progress: object) -> None:
        config.out.mkdir(exist_ok=True)
        (config.out / "run.json").write_text("{}")
        raise error

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        run_demo(out, silent)
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if existed else [])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_in_the_way_is_not_touched(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "mine" if kind == "folder" else out).write_text("precious")
    with pytest.raises(RunFolderError, match="choose another by --out"):
        run_demo(out, silent)
    assert (out / "mine" if kind == "folder" else out).read_text() == "precious"


def test_without_tensorrt_the_chain_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = []

    def export(run: Path, *, format: str, data: str, out: Path) -> dict[str, Any]:
        formats.append(format)
        if format == "trt":
            raise BackendUnavailable("tensorrt_rtx is not installed; pip install polarprune[rtx]")
        return {"onnx": str(out), "engine": None}

    monkeypatch.setattr(polarprune_export, "export_bundle", export, raising=False)
    exported, note = demonstration._export_both(tmp_path, silent)
    assert formats == ["trt", "onnx", "onnx"]
    assert [found["engine"] for found in exported] == [None, None]
    assert "polarprune[rtx]" in note


def test_without_matplotlib_the_table_says_how_to_get_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*args: object) -> None:
        raise BackendUnavailable("matplotlib is not installed; run: pip install 'it'")

    monkeypatch.setattr("polarprune.reports.plots.draw_gates", draw)
    monkeypatch.setattr(demonstration, "RunFolder", lambda path: path)
    plots, note = demonstration._draw(tmp_path, silent)
    assert plots == ()
    assert "pip install 'it'" in str(note)
