"""The lazy names of each package: what type checkers see is what a user gets."""

import ast
import importlib
import pkgutil
import types
from pathlib import Path

import pytest

PACKAGES = ("polarprune", "polarprune_export", "polarprune_deploy")

# The Python contract of the design: public and stable, more may be added.
PROMISED = {
    "polarprune": {
        *("build_network", "attach_gates", "collapse", "certify", "Certificate", "count_macs"),
        *("save_network", "load_network", "OnePass", "train", "TrainConfig", "TrainResult"),
        *("GateSite", "Refusal"),
    },
    "polarprune_export": {"write_onnx", "build_engine", "write_bundle"},
    "polarprune_deploy": {"load_runner", "compare_latency"},
}


def type_checked_names(source: str) -> dict[str, str]:
    """Public name -> the module it comes from, as the `if TYPE_CHECKING:` block says."""
    (block,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def names_that_are_modules(package: types.ModuleType) -> set[str]:
    modules = {m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    return {name for name in package.__all__ if f"{package.__name__}.{name}" in modules}


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> types.ModuleType:
    return importlib.import_module(request.param)


def test_every_public_name_is_the_one_type_checkers_see(package: types.ModuleType) -> None:
    seen = type_checked_names(Path(str(package.__file__)).read_text(encoding="utf-8"))
    assert set(seen) == set(package.__all__)
    for name, home in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


def test_what_the_design_promises_is_public(package: types.ModuleType) -> None:
    assert PROMISED[package.__name__] <= set(package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_an_unknown_name_is_an_attribute_error(package: types.ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


def test_no_public_name_equals_a_module_of_its_package(package: types.ModuleType) -> None:
    assert names_that_are_modules(package) == set()


def test_a_public_name_that_equals_a_module_is_caught() -> None:
    fake = types.ModuleType("polarprune")
    fake.__path__ = importlib.import_module("polarprune").__path__
    fake.__all__ = ["certify", "gates"]  # type: ignore[attr-defined]
    assert names_that_are_modules(fake) == {"gates"}
