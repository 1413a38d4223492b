"""CHANGELOG.md and the package tell the same version."""

import re
from pathlib import Path

import pytest

import polarprune

ROOT = Path(__file__).parents[2]


def released_next(changelog: str) -> str:
    """The version that the topmost section is, or (if unreleased) is going to be."""
    top = re.search(r"^## \[(?P<version>[^\]]+)\].*\n(?P<body>(?:(?!## ).*\n)*)", changelog, re.M)
    assert top is not None, "no section"
    if top["version"] != "Unreleased":
        return top["version"]
    announced = re.search(r"It will be (\d+\.\d+\.\d+)\.", top["body"])
    assert announced is not None, "the Unreleased section does not say: It will be X.Y.Z."
    return announced[1]


def test_the_top_section_is_the_version_of_the_package() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert released_next(changelog) == polarprune.__version__


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# Changelog\n\n## [Unreleased]\n\nIt will be 1.2.3.\n\n## [1.2.2]\n", "1.2.3"),
        ("# Changelog\n\n## [1.2.2] - 2026-01-01\n\n## [1.2.1]\n", "1.2.2"),
    ],
)
def test_an_unreleased_and_a_released_top_are_read(text: str, version: str) -> None:
    assert released_next(text) == version


def test_a_version_announced_by_an_older_section_does_not_count() -> None:
    with pytest.raises(AssertionError, match="does not say"):
        released_next("## [Unreleased]\n\n- new\n\n## [1.2.2]\n\nIt will be 1.2.3.\n")
