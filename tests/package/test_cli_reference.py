"""The page about the command line says what the program says."""

from benchmarks import cli_reference


def test_the_page_is_what_the_program_says_of_itself() -> None:
    written = cli_reference.PAGE.read_text(encoding="utf-8")
    assert written == cli_reference.page(), "run: python -m benchmarks.cli_reference"


def test_every_verb_is_on_it() -> None:
    words = [path for path, _ in cli_reference.helps(cli_reference.command(), "polarprune")]
    assert len(words) == len(set(words))
    for verb in ("train", "inspect", "export", "bench", "serve", "deploy triton", "deploy kserve"):
        assert f"polarprune {verb}" in words
