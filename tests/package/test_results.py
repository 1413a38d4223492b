"""The README's numbers are those of the records."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "readme_results", ROOT / "benchmarks" / "readme_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_tables_are_made_from_the_records() -> None:
    program = _program()
    [begin, end] = program.BLOCK.search((ROOT / "README.md").read_text()).groups()
    assert begin + program.results_block() + end in (ROOT / "README.md").read_text()


def test_the_page_of_results_is_made_from_the_records() -> None:
    program = _program()
    page = program.PAGE.read_text()
    assert page == program.results_page()
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (program.PAGE.parent / target).exists(), target


def test_a_changed_number_in_the_readme_is_noticed() -> None:
    program = _program()
    text = (ROOT / "README.md").read_text()
    changed = text.replace("top-1 (n = 360)", "top-1 (n = 361)")
    assert changed != text
    assert program.results_block() not in changed
