"""`polarprune deploy`: what it prints where, its exit codes, one line for every failure."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundles import write_small_bundle

from polarprune.commands import deploy_commands

Run = Callable[..., tuple[int, str, str]]
VERBS = ["triton", "kserve"]


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The console entry point in a folder with a bundle."""
    write_small_bundle(tmp_path / "bundle")
    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_help_for_every_option(verb: str, run: Run) -> None:
    code, out, _ = run("deploy", verb, "--help")
    assert code == 0
    assert f"Example: polarprune deploy {verb} bundle --out " in out
    for parameter in inspect.signature(getattr(deploy_commands, verb)).parameters.values():
        [information] = parameter.annotation.__metadata__
        assert information.help, parameter.name


def test_help_names_the_verbs(run: Run) -> None:
    assert "\n  deploy " in run("--help")[1]
    out = run("deploy", "--help")[1]
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_triton_ends_with_one_json_object(run: Run) -> None:
    code, out, err = run("deploy", "triton", "bundle", "--out", "repository", "--json")
    answer = json.loads(out)
    assert (code, answer["model"], answer["version"]) == (0, "small", 1)
    assert Path(answer["file"]).is_file()
    assert "not a Triton plan" in err
    code, out, err = run("deploy", "triton", "bundle", "--out", "repository")
    assert (code, err) == (0, "")
    assert "version 2" in out
    assert "tritonserver --model-repository=" in " ".join(out.split())


def test_kserve_ends_with_one_json_object(run: Run) -> None:
    code, out, err = run("deploy", "kserve", "bundle", "--out", "kserve", "--json")
    answer = json.loads(out)
    assert (code, answer["service"]) == (0, "small")
    assert Path(answer["manifest"]).is_file()
    assert Path(answer["dockerfile"]).is_file()
    assert all(step in err for step in answer["steps"])


TRITON = ["deploy", "triton", "bundle", "--out", "repository"]
KSERVE = ["deploy", "kserve", "bundle", "--out", "kserve"]
FAILURES = [
    (["deploy"], 2, "error: Missing command; see polarprune deploy --help"),
    (["deploy", "fly"], 2, "error: No such command 'fly'"),
    (["deploy", "--nonsense"], 2, "error: No such option: --nonsense"),
    ([*TRITON, "--nonsense"], 2, "error: No such option: --nonsense"),
    (["deploy", "triton", "bundle"], 2, "error: Missing option '--out'"),
    ([*TRITON, "--version", "one"], 2, "error: Invalid value for '--version'"),
    ([*TRITON, "--version", "0"], 1, "error: --version must be from 1"),
    ([*TRITON, "--device", "tpu"], 1, "error: --device must be one of auto, cpu, cuda"),
    ([*TRITON, "--public-key", "no.pem"], 1, "error: the key no.pem cannot be read"),
    (["deploy", "triton", ".", "--out", "x"], 1, "error: . is not a bundle: manifest.json"),
    (["deploy", "triton", "bundle", "--out", "bundle"], 1, "error: bundle is a bundle; give"),
    ([*KSERVE, "--nonsense"], 2, "error: No such option: --nonsense"),
    ([*KSERVE, "--cpu", "many"], 1, "error: --cpu must be a quantity"),
    ([*KSERVE, "--runtime", "triton"], 1, "error: with --runtime triton KServe fetches"),
    (["deploy", "kserve", ".", "--out", "x"], 1, "error: . is not a bundle: manifest.json"),
    (["deploy", "kserve", "bundle", "--out", "."], 1, "error: . is there already and is not"),
]


@pytest.mark.parametrize(("words", "code", "message"), FAILURES, ids=lambda value: str(value)[-40:])
def test_a_failure_is_one_line(words: list[str], code: int, message: str, run: Run) -> None:
    got, out, err = run(*words)
    assert (got, out) == (code, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["bundle"]
