"""One server for all tests that only ask it something."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.serving.served import BODY_MB, MODEL, Reference, Served, make_folder


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the small bundle; nobody changes it."""
    return make_folder(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def served(bundle_folder: Path) -> Iterator[Served]:
    """It serves the small bundle over HTTP and gRPC; at the end it must stop with 0."""
    with Served(bundle_folder, ("--queue", "4096", "--max-body-mb", str(BODY_MB))) as server:
        yield server


@pytest.fixture(scope="session")
def reference(bundle_folder: Path) -> Reference:
    """The same network without a server."""
    return Reference(bundle_folder / MODEL)
