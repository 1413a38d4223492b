"""The command line: what it prints where, its exit codes, and one line for every failure."""

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import polarprune
from polarprune import cli
from polarprune.errors import CheckpointError, TrainingError
from polarprune.inspection import inspecting
from polarprune.network_files import load_network
from polarprune.runs import training
from polarprune.runs.train_config import TrainConfig

VERBS = ["train", "inspect", "export", "collapse-onnx", "verify", "bench", "report", "demo"]
TRAIN = ["train", "--model", "resnet20", "--data", "digits", "--out", "out"]

Run = Callable[..., tuple[int, str, str]]


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from polarprune.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime', 'matplotlib') "
        "if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stdout + answer.stderr
    assert "Usage: " in answer.stdout


def test_help_takes_less_than_half_a_second_of_work() -> None:
    before = os.times()
    subprocess.run([sys.executable, "-m", "polarprune", "--help"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    # CPU seconds, not wall: the machine may be busy. Torch alone would cost several times this.
    assert spent < 0.9


def test_help_lists_the_verbs_in_the_order_of_the_pipeline(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    places = [out.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    assert run()[1] == out
    assert run("--version")[:2] == (0, f"polarprune {polarprune.__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_help_for_every_option(verb: str, run: Run) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"Example: polarprune {verb}" in out
    parameters = inspect.signature(getattr(cli, verb.replace("-", "_"))).parameters.values()
    for parameter in parameters:
        if parameter.annotation is typer.Context:
            continue
        [information] = parameter.annotation.__metadata__
        assert information.help, parameter.name


def test_the_defaults_of_train_are_those_of_the_library() -> None:
    ours = inspect.signature(cli.train).parameters
    for field in dataclasses.fields(TrainConfig):
        if field.default is not dataclasses.MISSING:
            assert ours[field.name].default == field.default, field.name
    assert set(ours) == {field.name for field in dataclasses.fields(TrainConfig)} | {"as_json"}


REFUSED = [
    ([*TRAIN, "--target", "0"], "--target must be above 0 and at most 1, got 0"),
    ([*TRAIN, "--target=0.5", "--target-params=0.5"], "give --target or --target-params, not both"),
    ([*TRAIN, "--target-params", "2"], "--target-params must be above 0 and at most 1"),
    ([*TRAIN, "--target", "1.5"], "--target must be above 0 and at most 1, got 1.5"),
    ([*TRAIN, "--target", "nan"], "--target must be above 0 and at most 1, got nan"),
    ([*TRAIN, "--target", "0.00001"], "--target 1e-05 cannot be reached: "),
    ([*TRAIN, "--epochs", "0"], "--epochs must be at least 1, got 0"),
    ([*TRAIN, "--method", "magic"], "--method must be one of "),
    ([*TRAIN, "--granularity", "atom"], "--granularity must be one of "),
    ([*TRAIN, "--schedule", "none"], "--schedule must be one of one-cyc"),
    ([*TRAIN, "--precision", "fp8"], "--precision must be one of auto"),
    ([*TRAIN, "--device", "abacus"], "--device must be one of auto"),
    ([*TRAIN, "--lr", "-1"], "--lr must be a number above 0, got -1"),
    ([*TRAIN, "--model", "resnet21"], "unknown model 'resnet21'"),
    ([*TRAIN, "--data", "nowhere"], "data folder nowhere does not exist; "),
    ([*TRAIN, "--weights", "nothing.pt"], "weights file nothing.pt does not exist"),
    ([*TRAIN, "--resume"], "out holds no run.json; "),
    (["inspect", "nothing/here"], "nothing/here does not exist; give a run folder, a b"),
    (["inspect", "."], ". is no run folder, bundle or saved network; "),
    (["inspect", "resnet20", "--html", "no/page.html"], "--html: the folder no does not"),
    (["inspect", "resnet20", "--html", "."], "--html takes a file, and . is a folder; "),
    (["inspect", "resnet21", "--html", "page.html"], "unknown model 'resnet21'"),
    (["export", "resnet20", "--format", "tflite", "--out", "out"], "--format must be"),
    (["export", "resnet20", "--precision", "fp4", "--out", "out"], "--precision must"),
    (["export", "resnet20", "--batch", "8:1", "--out", "out"], "--batch must be MI"),
    (["export", ".", "--out", "out"], ". holds no run.json; "),
    (["export", "runs/one", "--out", "out"], "runs/one is no run folder; give one, or a"),
    (["export", "timm:a/b", "--out", "out"], "unknown model 'timm:a/b'; "),
    (["collapse-onnx", "nothing.onnx", "out.onnx"], "nothing.onnx does not exist; "),
    (["collapse-onnx", ".", "out.onnx"], ". is no file; "),
    (["verify", "."], ". is not a bundle: "),
    (["report", "run"], "run holds no run.json; give a run folder"),
    (["bench", "resnet20"], "resnet20 is no run, so it has no base to compare with; "),
    (["bench", "run"], "there is no run or bundle run, and unknown model 'run'; ours are"),
    (["bench", "runs/one"], "runs/one does not exist; give a run folder, a bundle or a m"),
    (["bench", "resnet20", "--against", "run"], "there is no run or bundle run, and unk"),
    (["bench", "resnet20", "--backend", "abacus"], "--backend must be one of "),
    (["bench", "resnet20", "--batch", "1,x"], "--batch must be whole numbers"),
    (["bench", "resnet20", "--batch", ""], "--batch must be whole numbers"),
    (["serve", "absent"], "absent cannot be read (No such file or directory)"),
    (["serve", ".", "--http-port", "70000"], "--http-port must be from 0 to 65535"),
]
MISUSED = [
    (["--nonsense"], "No such option: --nonsense"),
    (["fly"], "No such command 'fly'"),
    (["train", "--nonsense"], "No such option: --nonsense"),
    (["train"], "Missing option '--model'"),
    ([*TRAIN, "--epochs", "many"], "Invalid value for '--epochs'"),
    (["verify"], "Missing argument 'BUNDLE'"),
    (["collapse-onnx", "in.onnx"], "Missing argument 'OUT.onnx'"),
    (["serve"], "Missing argument 'FOLDER_OF_BUNDLES|BUNDLE'"),
]


@pytest.mark.parametrize(("args", "words"), [*REFUSED, *MISUSED], ids=str)
def test_a_failure_is_one_line_and_leaves_nothing(
    args: list[str], words: str, run: Run, tmp_path: Path
) -> None:
    code, out, err = run(*args)
    assert (code, out) == (1 if (args, words) in REFUSED else 2, "")
    assert err.startswith(f"error: {words}")
    assert err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    for args in (TRAIN, ["demo", "--out", "out"], ["export", "resnet20", "--out", "out"]):
        code, _, err = run(*args)
        assert code == 1
        assert "not" in err
        assert "empty" in err
        assert err.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_with_json_the_last_line_of_stdout_is_one_object(run: Run, pruned_run: Path) -> None:
    code, out, err = run("inspect", str(pruned_run), "--json")
    assert code == 0
    assert out.count("\n") == 1
    document = json.loads(out)
    assert document["kind"] == "run"
    assert document["blocks_removed"] == 3
    assert "layer1.0.conv1" in err


def test_without_json_people_read_stdout(run: Run, pruned_run: Path) -> None:
    code, out, err = run("inspect", str(pruned_run))
    assert (code, err) == (0, "")
    assert "layer1.0.conv1" in out


def test_inspect_draws_a_page_beside_its_tables(run: Run, pruned_run: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", str(pruned_run), "--html", "page.html")
    assert (code, err) == (0, "")
    assert "layer1.0.conv1" in out
    assert out.splitlines()[-1] == "Page: page.html"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count('id="site-') == 21
    code, out, _ = run("inspect", str(pruned_run), "--html", "page.html", "--json")
    assert json.loads(out) == json.loads(run("inspect", str(pruned_run), "--json")[1])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_a_bundle_is_not_drawn(run: Run, bundle: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", str(bundle), "--html", "page.html")
    assert (code, out) == (1, "")
    assert err.startswith("error: --html draws a network, and ")
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.fixture
def broken_inspect(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `inspect` raise something."""

    def breaks(error: BaseException) -> None:
        def fail(*args: object) -> None:
            raise error

        monkeypatch.setattr(inspecting, "inspect_source", fail)

    return breaks


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (TrainingError("two\nlines"), 1, "error: two lines\n"),
        (OSError(28, "No space left on device", "run"), 1, "error: run: No space left on device\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "error: ZeroDivisionError: division by zero (POLARPRUNE_TRACEBACK=1 shows where)\n",
        ),
        (AssertionError(), 1, "error: AssertionError:  (POLARPRUNE_TRACEBACK=1 shows where)\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_is_raised_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    run: Run,
    broken_inspect: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("POLARPRUNE_TRACEBACK", raising=False)
    broken_inspect(error)
    got, out, err = run("inspect", "resnet20")
    assert (got, out) == (code, "")
    assert " ".join(err.split()) == " ".join(line.split())
    assert err.count("\n") == 1


def test_a_run_in_the_place_of_what_is_made_of_it_is_told_apart(run: Run, pruned_run: Path) -> None:
    for verb in (["verify"], ["deploy", "triton", "--out", "repository"], ["serve"]):
        code, _, err = run(*verb, str(pruned_run))
        assert code == 1
        assert f"{pruned_run} is a run and not a bundle; write its bundle with: " in err
    with pytest.raises(CheckpointError, match=r"the network of this run is in .*pruned$"):
        load_network(pruned_run)


@pytest.mark.parametrize("checkpoint", ["checkpoint", "checkpoint.old", None])
def test_training_that_is_interrupted_says_how_to_go_on(
    checkpoint: str | None,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        if checkpoint is not None:
            (tmp_path / "out" / checkpoint).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, out, err = run(*TRAIN)
    more = "; go on from the last checkpoint in out by the same command with --resume"
    assert (code, out) == (130, "")
    assert err == f"error: interrupted{more if checkpoint else ''}\n"


# A verb that is told to end in the middle of its work, with a file half-written.
TERMINATED = """
import os, signal, sys
from polarprune_export import bundle
from polarprune.cli import main

def told_to_end(*_, **__):
    assert [name for name in os.listdir() if name.endswith(".partial")]
    os.kill(os.getpid(), signal.SIGTERM)

assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "importing is enough to change it"
bundle.write_onnx = told_to_end
sys.argv[1:] = ["export", "resnet20", "--out", "out"]
try:
    main()
finally:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def test_a_verb_that_is_terminated_cleans_up(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", TERMINATED], cwd=tmp_path, capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (143, "")
    assert answer.stderr.splitlines()[-1] == "error: terminated"
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_whoever_has_decided_what_sigterm_does_is_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        inspecting, "inspect_source", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        run("inspect", "resnet20")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_traceback_is_shown_to_who_asks_for_it(
    run: Run,
    broken_inspect: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLARPRUNE_TRACEBACK", "1")
    broken_inspect(ZeroDivisionError("division by zero"))
    code, _, err = run("inspect", "resnet20")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError")


def test_what_libraries_warn_of_does_not_reach_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*args: object) -> None:
        warnings.warn("deprecated since yesterday", DeprecationWarning, stacklevel=1)
        raise TrainingError("done")

    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(inspecting, "inspect_source", warn)
    assert run("inspect", "resnet20")[2] == "error: done\n"


def test_a_reader_that_stops_reading_is_no_error(bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "polarprune", "inspect", str(bundle)]
    answer = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (1, "")


@pytest.mark.slow
def test_the_chain_runs_verb_by_verb(brief_timing: None, run: Run, tmp_path: Path) -> None:
    """On real digits, quickly: two epochs of eight layers at 8x8 pixels."""
    options = ["--model", "digit_runs:resnet8", "--epochs", "2", "--json"]
    code, out, err = run(*TRAIN, *options)
    assert code == 0, err
    trained = json.loads(out.splitlines()[-1])
    assert trained["run"] == "out"
    assert trained["macs_ratio"] <= 0.5
    assert "epoch 2/2" in err

    seen = json.loads(run("inspect", "out", "--json")[1])
    assert (seen["macs"], seen["params"]) == (trained["macs"], trained["params"])
    assert seen["blocks_removed"] == trained["blocks_removed"]

    code, out, err = run("export", "out", "--data", "digits", "--out", "bundle", "--json")
    assert code == 0, err
    exported = json.loads(out.splitlines()[-1])
    assert set(exported) == {
        *("bundle", "onnx", "engine", "runs_on", "precision", "max_abs_error", "top1"),
        *("before", "kept_float32", "random_weights", "uneven_convolutions", "input_shape"),
    }
    assert (tmp_path / exported["onnx"]).is_file()
    assert abs(exported["top1"] - trained["top1"]) <= 1 / 360

    code, out, err = run("verify", "bundle")
    assert code == 0, err
    assert "real inputs" in out
    code, out, err = run("bench", "bundle", "--against", "bundle", "--batch", "1", "--json")
    assert code == 0, err
    [row] = json.loads(out.splitlines()[-1])["rows"]
    assert row["batch"] == 1
    assert row["verdict"] in {"faster", "slower", "no_difference_shown", "inconclusive"}

    code, _, err = run("bench", "out", "--batch", "1", "--record", "out/bench.jsonl")
    assert code == 0, err
    code, out, err = run("report", "out", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == {"report": "out/report.html"}
    assert f"{trained['macs']:,} of {trained['dense_macs']:,}" in Path("out/report.html").read_text(
        encoding="utf-8"
    )
    (tmp_path / "out" / "bench.jsonl").write_text('{"kind": "clock"}\n')
    code, out, err = run("report", "out")
    assert (code, out) == (1, "")
    assert err.startswith("error: out/bench.jsonl, line 1: ")
    assert err.count("\n") == 1

    onnx = bytearray((tmp_path / "bundle" / "model.onnx").read_bytes())
    onnx[len(onnx) // 2] ^= 1
    (tmp_path / "bundle" / "model.onnx").write_bytes(onnx)
    code, out, err = run("verify", "bundle")
    assert (code, out) == (1, "")
    assert "was changed after export" in err
    assert err.count("\n") == 1
    code, out, err = run("inspect", "bundle")
    assert (code, "NOT OK" in out) == (1, True)
    assert err.startswith("error: bundle/model.onnx does not have the sha256 digest")
    assert err.count("\n") == 1
