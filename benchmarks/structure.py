"""What the code looks like from outside: its rooms, who imports whom, how long things are.

    python -m benchmarks.structure                            # writes docs/structure.md
    python -m benchmarks.structure --anchor NAME=LIBRARY:TESTS  # measures another project, too

An anchor is measured in a copy of its own (a source distribution, a clone) and recorded; the table
is written from the record. Lines are all lines of a file. Tests and asserts are counted by name: a
function `test...`, an `assert` statement or a call of something `assert...` or of `raises`.
"""

import argparse
import ast
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grimp
import numpy as np

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "structure.md"
RECORD = ROOT / "benchmarks" / "results" / "structure.json"
PACKAGES = {
    "polarprune": ROOT / "polarprune",
    "polarprune_export": ROOT / "export" / "polarprune_export",
    "polarprune_deploy": ROOT / "deploy" / "polarprune_deploy",
}
FEW = 4
"""Imports from one room into another below which the picture leaves the arrow out."""
EVERYWHERE = "polarprune.errors"
"""What all rooms import says nothing about them."""


@dataclass(frozen=True)
class Measured:
    """One project's sizes; percentiles over files and over functions.

    Attributes:
        files: of the library.
        lines: of a file: median, 90th percentile, largest.
        function: lines of a function: 90th percentile, largest.
        documented: share of public functions and methods that have a docstring.
        annotated: share of them of which every argument has a type.
        tests, asserts: in the tests; 0 where they are not at hand.
    """

    files: int
    lines: tuple[int, int, int]
    function: tuple[int, int]
    documented: float
    annotated: float
    tests: int
    asserts: int


def measure(library: Sequence[Path], tests: Sequence[Path]) -> Measured:
    """Sizes of all `.py` files below some folders; what cannot be parsed is left out."""
    lines, lengths = [], []
    documented = annotated = public = 0
    for tree, length in _trees(library, "tests"):
        lines.append(length)
        for function in _functions(tree):
            lengths.append((function.end_lineno or 0) - function.lineno + 1)
            if function.name.startswith("_"):
                continue
            public += 1
            documented += ast.get_docstring(function) is not None
            annotated += _is_annotated(function)
    found = Counter(kind for tree, _ in _trees(tests) for kind in _checks(tree))
    middle, upper = np.percentile(lines, (50, 90))
    return Measured(
        len(lines), (round(middle), round(upper), max(lines)),
        (round(float(np.percentile(lengths, 90))), max(lengths)),
        documented / public, annotated / public, found["test"], found["assert"],
    )  # fmt: skip


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _trees(folders: Sequence[Path], without: str = "") -> Iterator[tuple[ast.Module, int]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if without in path.relative_to(folder).parts:
                continue
            text = path.read_text(encoding="utf-8")
            try:
                yield ast.parse(text), text.count("\n")
            except SyntaxError:
                continue


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _is_annotated(function: Function) -> bool:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return all(arg.annotation is not None for arg in named if arg.arg not in ("self", "cls"))


def _checks(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.name.startswith("test"):
            yield "test"
        elif isinstance(node, ast.Assert):
            yield "assert"
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name.startswith("assert") or name == "raises":
                yield "assert"


def room_of(module: str) -> str:
    """The package that a module lies in.

    >>> room_of("polarprune.graph.sites"), room_of("polarprune.gates")
    ('polarprune.graph', 'polarprune')
    """
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    return f"{package}.{folder}" if (PACKAGES[package] / folder).is_dir() and folder else package


def first_line(path: Path) -> str:
    """Of a module's docstring: its one idea."""
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return words.partition("\n")[0].rstrip(".")


def modules() -> dict[str, Path]:
    """All of ours, by name."""
    return {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): path
        for name, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    }


def picture() -> list[str]:
    """Rooms and the imports between them, as Mermaid."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    arrows = Counter(
        (room_of(importer), room_of(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer) - {EVERYWHERE}
    )
    lines = ["```mermaid", "flowchart TD"]
    rooms = sorted({room for pair in arrows for room in pair})
    for package in PACKAGES:
        lines.append(f"  subgraph {package}_[{package}]")
        for room in rooms:
            if room.partition(".")[0] == package:
                lines.append(f"    {_node(room)}[{room.partition('.')[2] or 'top'}]")
        lines.append("  end")
    for (here, there), count in sorted(arrows.items()):
        if here != there and count >= FEW:
            lines.append(f"  {_node(here)} -->|{count}| {_node(there)}")
    return [*lines, "```"]


def _node(room: str) -> str:
    return room.replace(".", "__")


def anchor_lines(anchors: dict[str, Measured]) -> list[str]:
    """Ours beside others."""
    lines = [
        "| code | files | lines: median / p90 / max | function: p90 / max | public functions with "
        "docstring / annotated | tests / asserts |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in anchors.items():
        lines.append(
            f"| {name} | {m.files} | {' / '.join(f'{n:,}' for n in m.lines)} "
            f"| {' / '.join(f'{n:,}' for n in m.function)} "
            f"| {100 * m.documented:.0f} % / {100 * m.annotated:.0f} % "
            f"| {f'{m.tests:,} / {m.asserts:,}' if m.tests else 'not in its distribution'} |"
        )
    return lines


def page(anchors: dict[str, Measured]) -> str:
    """The whole page."""
    ours = measure([*PACKAGES.values()], [ROOT / "tests"])
    found = modules()
    rooms: dict[str, list[str]] = {}
    for module in found:
        rooms.setdefault(room_of(module), []).append(module)
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, path in found.items()}
    parts = [
        "# Structure",
        "",
        "Written by `python -m benchmarks.structure`. Arrows are imports, with their number "
        f"({FEW} or more; the exceptions, which all import, left out); deploy imports export, "
        "export the core, never back (`lint-imports`): what points back here are the verbs of the "
        "command line, which import a package when they run.",
        "",
        *picture(),
        "",
        "Beside the projects that we learn from:",
        "",
        *anchor_lines({"polarprune": ours, **anchors}),
    ]
    for room, members in sorted(rooms.items(), key=lambda item: list(rooms).index(item[0])):
        total = sum(lengths[m] for m in members)
        parts += ["", f"## {room}", "", f"{len(members)} files, {total:,} lines.", ""]
        parts += ["| module | lines | |", "|---|---|---|"]
        for member in members:
            name = member.removeprefix(f"{room}.") if member != room else "\\_\\_init\\_\\_"
            parts.append(f"| {name} | {lengths[member]} | {first_line(found[member])} |")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.structure")
    parser.add_argument("--anchor", action="append", default=[], metavar="NAME=LIBRARY[:TESTS]")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"anchors": {}}
    for given in args.anchor:
        name, _, paths = given.partition("=")
        library, _, tests = paths.partition(":")
        found = measure([Path(library)], [Path(tests)] if tests else [])
        record["anchors"][name] = asdict(found)
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    anchors = {
        name: Measured(**{**found, "lines": tuple(found["lines"]),
                          "function": tuple(found["function"])})
        for name, found in record["anchors"].items()
    }  # fmt: skip
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(anchors), encoding="utf-8")
    ours = measure([*PACKAGES.values()], [ROOT / "tests"])
    print("\n".join(anchor_lines({"polarprune": ours, **anchors})))


if __name__ == "__main__":
    main()
